"""Run `lbm-lora` commands in this process, and provide the bundled mini model for two of the benchmarks."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

from lbm_lora import bundled

MINI_TUNED = bundled.TUNED / "model.safetensors"
MINI_PAIR = {"base": "the bundled backbone's exact base, bf16", "tuned": "the bundled mini model, bf16"}


def arguments(*words: object, **flags: object) -> list[str]:
    """Build a command line. A tuple gives several words, True only the flag, None omits it.

    `arguments("extract", ranks=(1, 2))` is `["extract", "--ranks", "1", "2"]`.
    """
    found = [str(word) for word in words]
    for flag, value in flags.items():
        if value is not None:
            values = () if value is True else value if isinstance(value, tuple) else (value,)
            found += [f"--{flag}", *map(str, values)]
    return found


def lbm_lora(line: list[str]) -> dict[str, Any]:
    """Run a command, and return its JSON result.

    Raises:
        SystemExit: its exit code is not 0. It reports why on stderr.
    """
    from lbm_lora.cli.main import main

    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = main([*line, "--json"])
    if code:
        raise SystemExit(f"error: lbm-lora {line[0]} ended with {code}.")
    return json.loads(output.getvalue())


def mini_base(path: Path) -> Path:
    """Return the base of the mini model, created if missing."""
    if not path.exists():
        lbm_lora(arguments("base", config_path=bundled.TUNED / "config.yaml", save_path=path))
    return path
