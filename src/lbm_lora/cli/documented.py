"""The documented command lines of the scripts in `lora/`, handed over to `lbm-lora`.

The scripts' flags are the commands' own. What this module adds are the documented default paths, relative to the
folder that a script is started in, the copy of the source next to an output, and the paths of the exact base: step 0
writes one (another without --save_path), step 1 reads a third.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lbm_lora.cli.main import main

CONFIG = "examples/inference/ckpts/relighting/config.yaml"
TUNED = "examples/inference/ckpts/relighting/model.safetensors"
BASE = "lora/checkpoints/exact_base.ckpt"
LORA = "lora/checkpoints/my_lora.safetensors"
MADE_BASE = "lora/checkpoints/base/exact_lbm_base.ckpt"
BASE_PLACES = (BASE, "lora/exact_base.ckpt", MADE_BASE)

SCRIPTS: dict[str, tuple[str, dict[str, str | None]]] = {
    "create_exact_base_model": ("base", {"config_path": CONFIG, "save_path": MADE_BASE}),
    "extract_lora_native": ("extract", {"base_model_path": BASE, "tuned_model_path": TUNED, "save_to": LORA}),
    "test_reconstruction_simple": (
        "validate",
        {
            "base_model_path": BASE,
            "tuned_model_path": TUNED,
            "lora_path": LORA,
            "layer_names": "lora/lora_layer_names.txt",
        },
    ),
    "inference_native": (
        "infer",
        {
            "base_model_path": BASE,
            "lora_path": LORA,
            "source_image": "examples/inference/ckpts/relighting/assets/source_image.jpg",
            "output_path": "lora/assets/output.jpg",
            "save_input": None,
        },
    ),
    "train_lora": ("train", {"path_config": "lora/lora_relight_config.yaml"}),
}
"""Script -> command and its documented defaults; None marks a flag without a value."""


def run_script(script: str, argv: Sequence[str] | None = None) -> int:
    """Run a script's command line; the return value is the exit code.

    Args:
        script: name of the file in `lora/`, without `.py`.
        argv: its arguments; by default those of the process.
    """
    command, defaults = SCRIPTS[script]
    return main([command, *completed(list(sys.argv[1:] if argv is None else argv), defaults)])


def completed(arguments: list[str], defaults: Mapping[str, str | None]) -> list[str]:
    """The arguments with the documented defaults, and with the base's path where the base is."""
    given = {_name_of(argument).removeprefix("no_") for argument in arguments if argument[:2] == "--"}
    if given & {"help", "h"} or "-h" in arguments:
        return arguments
    missing = [(f"--{name}", value) for name, value in defaults.items() if name not in given]
    whole = [*arguments, *(part for pair in missing for part in pair if part is not None)]
    return [
        _base_place(argument) if _name_of(argument if "=" in argument else before) == "base_model_path" else argument
        for before, argument in zip(["", *whole], whole, strict=False)
    ]


def _name_of(argument: str) -> str:
    """`--base-model-path=x` -> `base_model_path`; an empty text for any other word."""
    return argument.partition("=")[0][2:].replace("-", "_") if argument.startswith("--") else ""


def _base_place(argument: str) -> str:
    """Return another documented path of the base if nothing exists at this one."""
    flag, equals, value = argument.rpartition("=")
    if value not in BASE_PLACES or Path(value).exists():
        return argument
    other = next((place for place in BASE_PLACES if Path(place).exists()), None)
    if other is None:
        return argument
    print(f"note: {value} does not exist, {other} does: it is used.", file=sys.stderr)
    return f"{flag}{equals}{other}"
