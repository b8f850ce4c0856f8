"""`python -m benchmarks [run | pair | report]`."""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import tyro

from benchmarks.measure import JobFailedError
from benchmarks.perf import themes
from benchmarks.perf.bench import Bench, Options
from benchmarks.perf.page import write_report
from benchmarks.perf.pair import pair_facts
from benchmarks.results import FOLDER, command_of, write_result

_EXTRACTION = (themes.machine, themes.extract, themes.svd, themes.error, themes.full_rank, themes.several)
_COMMANDS = (themes.base, themes.fuse, themes.validate, themes.load, themes.merge, themes.resize)
_NETWORKS = (themes.calibrated, themes.train, themes.refine, themes.infer)
THEMES = {theme.__name__: theme for theme in (*_EXTRACTION, *_COMMANDS, *_NETWORKS)}
"""Map from name for `--only` to its theme, in the order of a run."""
ON_DEVICE = ("extract", "infer")
"""Themes that support a device."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run; the exit code is 1 if a theme failed."""
    options = tyro.cli(Options, args=argv, prog="python -m benchmarks", use_underscores=True)
    options = replace(options, work=options.work.resolve())
    if options.what == "report":
        print(write_report(options.results or FOLDER, options.to))
        return 0
    if not 0 < options.scale <= 1:
        raise SystemExit(f"error: --scale must be above 0 and at most 1, the real LBM; got {options.scale:g}.")
    themes = options.only.split(",") if options.only else list(THEMES if options.device == "cpu" else ON_DEVICE)
    unknown = [theme for theme in themes if theme not in THEMES]
    if unknown:
        raise SystemExit(f"error: --only {','.join(unknown)}: the themes are {', '.join(THEMES)}.")
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options)
    if options.what == "pair":
        print(bench.pair.base.parent)
        return 0
    # a reduced scale is a trial: its numbers are not added to the committed results unless requested
    folder = options.results or (FOLDER if options.scale == 1 else options.work / "results")
    try:
        failed = [theme for theme in themes if not _measure(bench, theme, folder)]
    finally:
        bench.clean()
    if folder == FOLDER:
        write_report(folder, options.to)
    if failed:
        print(f"error: {len(failed)} of {len(themes)} themes failed: {', '.join(failed)}.", file=sys.stderr)
    return int(bool(failed))


def _measure(bench: Bench, theme: str, folder: Path) -> bool:
    """Write the result of a theme; return False if a process failed."""
    options = bench.options
    print(f"{theme}:", flush=True)
    start = time.perf_counter()
    try:
        numbers = THEMES[theme](bench)
    except JobFailedError as error:
        print(f"  failed: {error}", file=sys.stderr, flush=True)
        return False
    seconds = time.perf_counter() - start
    path = write_result(
        folder,
        theme if options.device == "cpu" else f"{theme}-{options.device.partition(':')[0]}",
        seconds=round(seconds, 1),
        command=command_of("benchmarks", options),
        settings={"scale": options.scale, "repeats": options.repeats, "device": options.device},
        pair=pair_facts(options.scale, options.seed),
        cores=options.cores,
        device=options.device,
        **numbers,
    )
    print(f"  {path.name}, {seconds:.0f} s", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
