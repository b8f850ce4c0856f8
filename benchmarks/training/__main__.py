"""`python -m benchmarks.training [run | relight | page]`: see `--help` of the first two."""

import sys
from collections.abc import Sequence
from typing import Any

import tyro

from benchmarks.training.page import RESULTS, write_page


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the time of a step (run) or train on renders (relight), or write the page of the newest results."""
    words = list(sys.argv[1:] if argv is None else argv)
    what = words.pop(0) if words and words[0] in ("run", "relight", "page") else "run"
    results = RESULTS
    if what != "page":
        from benchmarks.training import relight, step_time  # slow to import

        module: Any = step_time if what == "run" else relight
        program = f"python -m benchmarks.training {what}"
        options = tyro.cli(module.Options, args=words, prog=program, use_underscores=True)
        print(module.run(options))
        results = options.results
    if results == RESULTS:
        print(write_page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
