"""Whole `lbm-lora` commands, run in this process, and the bundled mini model that two of the benchmarks run on."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

from lbm_lora import bundled

MINI_TUNED = bundled.TUNED / "model.safetensors"
MINI_PAIR = {"base": "the bundled backbone's exact base, bf16", "tuned": "the bundled mini model, bf16"}


def arguments(*words: object, **flags: object) -> list[str]:
    """A command line. A tuple gives several words, True the flag alone, None leaves it out.

    `arguments("extract", ranks=(1, 2))` is `["extract", "--ranks", "1", "2"]`.
    """
    found = [str(word) for word in words]
    for flag, value in flags.items():
        if value is not None:
            values = () if value is True else value if isinstance(value, tuple) else (value,)
            found += [f"--{flag}", *map(str, values)]
    return found


def lbm_lora(line: list[str]) -> dict[str, Any]:
    """Run a command; returns its JSON result.

    Raises:
        SystemExit: it did not end with 0. It has said why on stderr.
    """
    from lbm_lora.cli.main import main

    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = main([*line, "--json"])
    if code:
        raise SystemExit(f"error: lbm-lora {line[0]} ended with {code}.")
    return json.loads(output.getvalue())


def mini_base(path: Path) -> Path:
    """The base of the mini model; made where it is not there."""
    if not path.exists():
        lbm_lora(arguments("base", config_path=bundled.TUNED / "config.yaml", save_path=path))
    return path
