"""The keys of a training file as flags of `train`: `--any.key value`, and their help."""

import math
from collections.abc import Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from lbm_lora.cli.arguments import grouped, unknown_flag
from lbm_lora.cli.flags import Bounds, Flag, taken_apart
from lbm_lora.errors import ConfigError
from lbm_lora.text import TextError, parse_yaml
from lbm_lora.training.settings import (
    LIST_KEYS,
    DataSettings,
    ModelSettings,
    ObjectiveSettings,
    OptimizerSettings,
    RunSettings,
    TrainConfig,
)
from lbm_lora.training.training_file import COMMAND_LINE, ELSEWHERE, LARGEST, docstrings, yaml_value

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


def split_keys(words: Sequence[str], own: Sequence[Flag]) -> tuple[list[str], dict[str, Any]]:
    """Split words into the command's own, and the keys of a training file with their values.

    `--key value`, `--key=value`; several words are a list (`--num_steps 1 2 4`), none stands for true.

    Args:
        own: the flags of `train` that are not keys.

    Raises:
        ConfigError: a word belongs to no flag, or a flag is not a key; the message names the nearest.
    """
    names = {name for flag in own for name in (flag.name, f"no_{flag.name}")}
    left: list[str] = []
    keys: dict[str, Any] = {}
    for flag, behind in grouped(words):
        if not flag:
            raise ConfigError(f"'{behind[0]}' belongs to no flag. A training file is given by --path_config.")
        written, equals, value = flag.removeprefix("--").partition("=")
        first, dot, inner = written.partition(".")
        name = first.replace("-", "_")
        if not flag.startswith("--") or name in names:
            left += [flag, *behind]
            continue
        if name in ELSEWHERE:
            raise ConfigError(f"--{name}: {ELSEWHERE[name]}.")
        if name not in TrainConfig.model_fields:
            known = [key for section in training_sections().values() for key in section]
            raise ConfigError(unknown_flag(name, [*own, *known], "train"))
        keys[f"{name}{dot}{inner}"] = _value(name, [value, *behind] if equals else behind)
    return left, keys


def _value(key: str, words: Sequence[str]) -> Any:
    """Return what the words behind a key say as YAML; those of a text or a path are taken as they are."""
    is_list, is_text = key in LIST_KEYS, _leaves(TrainConfig.model_fields[key].annotation) <= {str, Path}
    if not words:
        return True
    if len(words) == 1 and (words[0] == "null" or not is_list or words[0].startswith("[")):
        is_literal = is_text and not is_list and words[0] != "null"
        return words[0] if is_literal else yaml_value(words[0], f"{COMMAND_LINE}: {key}")
    return list(words) if is_text else [_scalar(word) for word in words]


def _scalar(word: str) -> object:
    try:
        return parse_yaml(word)
    except TextError:
        return word


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
