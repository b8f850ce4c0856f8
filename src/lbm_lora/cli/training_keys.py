"""The keys of a training file as flags of `train`: for its help, and to know a key that does not exist."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from lbm_lora.cli.arguments import unknown_flag
from lbm_lora.cli.flags import Flag, taken_apart
from lbm_lora.configs.docstrings import docstrings
from lbm_lora.configs.marks import Bounds
from lbm_lora.errors import ConfigError
from lbm_lora.training.settings import (
    DataSettings,
    ModelSettings,
    ObjectiveSettings,
    OptimizerSettings,
    RunSettings,
    TrainConfig,
)
from lbm_lora.training.training_file import ELSEWHERE, LARGEST

SECTIONS = {
    "keys of the training file: the pairs": DataSettings,
    "keys of the training file: what is trained": ModelSettings,
    "keys of the training file: the loss": ObjectiveSettings,
    "keys of the training file: optimizer, batch and length": OptimizerSettings,
    "keys of the training file: devices, files, validation": RunSettings,
}
_WORDS = {str: "TEXT", Path: "PATH", int: "N", float: "NUMBER", bool: "true|false", dict: "MAPPING"}
_NAMED = {
    "backbone_signature": "BACKBONE",
    "base_model_path": "CHECKPOINT",
    "cache_dir": "FOLDER",
    "config_path": "FILE",
    "image_size": "PIXELS",
    "lora_weights_path": "FILE",
    "lpips_weights": "FILE",
    "optimizer": "CLASS",
    "lora_target_modules": "PATTERN",
    "pixel_loss_max_size": "PIXELS",
    "resume": "auto|never|FILE",
    "save_ckpt_path": "FOLDER",
    "train_folder": "FOLDER",
    "train_shards": "SHARDS",
    "trainable_lora_modules": "PATTERN",
    "validation_folder": "FOLDER",
    "validation_shards": "SHARDS",
    "wandb_project": "NAME",
}
"""Placeholders for values whose type says too little."""


def training_sections() -> dict[str, list[Flag]]:
    """Return the keys of each section of a training file, by heading."""
    return {heading: [_key(name, section) for name in section.model_fields] for heading, section in SECTIONS.items()}


def list_keys() -> set[str]:
    """The keys whose value is a list."""
    return {name for name, key in TrainConfig.model_fields.items() if "tuple[" in str(key.annotation)}


def text_keys() -> set[str]:
    """The keys whose values are texts or paths."""
    return {name for name, key in TrainConfig.model_fields.items() if _leaves(key.annotation) <= {str, Path}}


def _leaves(hint: Any) -> set[type[Any]]:
    """Return the types that a type hint is made of, without None."""
    if get_origin(hint) is Literal:
        return {type(value) for value in get_args(hint)}
    parts = get_args(hint)
    if get_origin(hint) is Annotated:
        parts = parts[:1]
    if not parts:
        return set() if hint in (type(None), ...) else {hint}
    return set[type[Any]]().union(*map(_leaves, parts))


def check_keys(overrides: Iterable[tuple[str, str]], own: Sequence[Flag]) -> None:
    """Check that overrides are keys of a training file.

    Args:
        own: the flags of `train` that are not keys.

    Raises:
        ConfigError: one is not a key; the message names the nearest.
    """
    keys = [key for section in training_sections().values() for key in section]
    for dotted, _ in overrides:
        name = dotted.partition(".")[0].replace("-", "_")
        if name in ELSEWHERE:
            raise ConfigError(f"--{name}: {ELSEWHERE[name]}.")
        if name not in TrainConfig.model_fields:
            raise ConfigError(unknown_flag(name, [*own, *keys], "train"))


def _key(name: str, section: type[Any]) -> Flag:
    field = section.model_fields[name]
    if name == "resume":
        kind, extras, several = str, [], False
    else:
        kind, extras, several = taken_apart(field.annotation)
    found = [*field.metadata, *(one for extra in extras for one in getattr(extra, "metadata", ()))]
    least, most = (next((getattr(one, side) for one in found if hasattr(one, side)), None) for side in ("ge", "le"))
    choices = tuple(map(str, get_args(kind))) if get_origin(kind) is Literal else ()
    kind = str if choices else get_origin(kind) or kind
    default = field.get_default(call_default_factory=True)
    return Flag(
        name=name,
        kind=str if kind is bool else kind,  # of a key a switch has a value: --flip false
        word=_NAMED.get(name) or "|".join(choices) or _WORDS[kind],
        about=docstrings(section).get(name, ""),
        default=MISSING if field.is_required() else default,
        choices=choices,
        takes_several=several,
        bounds=None if least is None else Bounds(least, math.inf if most in (None, LARGEST) else most),
    )
