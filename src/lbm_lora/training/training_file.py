"""Base class of a training file's sections, and parsing from YAML to a configuration.

Values are checked as strict JSON: `true` is not a number, `4.0` and `"4"` are not counts, and text is not split into a
list.
"""

import ast
import inspect
import json
import re
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from lbm_lora.errors import ConfigError, home_path, not_there
from lbm_lora.text import TextError, parse_yaml, read_text

LARGEST = 10**9
"""Limit of whole numbers that have no smaller one."""

M = TypeVar("M", bound=BaseModel)

Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=LARGEST)]
Positive = Annotated[float, Field(gt=0)]

COMMAND_LINE = "command line"

ELSEWHERE = {
    "conditioning_images_keys": "training with conditioning images is not supported",
    "conditioning_masks_keys": "training with conditioning masks is not supported",
    "resume_from_checkpoint": "use 'resume': auto, never, or a file",
    "learning_rate_scheduler_kwargs": "use 'learning_rate_scheduler' and 'warmup_steps'",
}
"""Keys of LBM's own training files that have another name here, or are not supported."""


class Section(BaseModel):
    """Base class of the sections: frozen, without unknown keys, infinities or NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _checked(cls, value: object) -> object:
        if value == ():
            raise ValueError("Give at least one value, or remove the key")
        return home_path(value) if isinstance(value, Path) else value


def read_values(path: Path) -> dict[str, Any]:
    """Read the top-level mapping of a YAML file."""
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise ConfigError(not_there(path, (".yaml", ".yml"))) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except TextError as error:
        raise ConfigError(f"{path} {error}.") from None
    values = yaml_value(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}, not a mapping of keys.")
    return {str(key): value for key, value in values.items()}


def override(values: dict[str, Any], keys: Mapping[str, Any]) -> set[str]:
    """Set values by key in place, and return the keys that were set. `rank_pattern.ff.net` is a key of a key."""
    changed: set[str] = set()
    for dotted, value in keys.items():
        key, dot, inner = dotted.partition(".")
        if dot:
            held = values.get(key) or {}
            if not isinstance(held, dict):
                raise ConfigError(f"{COMMAND_LINE}: {dotted}: '{key}' is {held!r}, which has no key '{inner}'.")
            value = {**cast(dict[str, Any], held), inner: value}
        values[key] = value
        changed.add(key)
    return changed


def yaml_value(text: str, where: str) -> Any:
    """Return what a text says as YAML."""
    try:
        return parse_yaml(text)
    except TextError as error:
        raise ConfigError(f"{where} {error}.") from None


def parse(model: type[M], values: Mapping[str, Any], *, where: str, changed: Collection[str] = ()) -> M:
    """Parse values into a configuration.

    Args:
        where: the file, for error messages.
        changed: keys whose value comes from the command line.
    """
    for key, value in values.items():
        place = COMMAND_LINE if key in changed else where
        if key in ELSEWHERE:
            raise ConfigError(f"{place}: key '{key}': {ELSEWHERE[key]}.")
        if key not in model.model_fields:
            hint = nearest(key, model.model_fields, what="Valid keys")
            raise ConfigError(_sentence(f"{place}: unknown key '{key}'. {hint}"))
        if value == "" and "Path" in str(model.model_fields[key].annotation):  # `.` to pathlib
            raise ConfigError(f"{place}: {key} needs a value, got an empty text.")
    try:
        return model.model_validate_json(json.dumps(values, default=str), strict=True)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}.") from None
    except ValidationError as error:
        raise ConfigError(_said(error.errors(include_url=False)[0], where, changed)) from None


def nearest(word: str, known: Collection[str], *, what: str = "Known") -> str:
    """Return a hint for an unknown word: the nearest known one, ignoring case, or else all of them."""
    lower = {name.lower(): name for name in known}
    near = get_close_matches(word.lower(), lower, n=1, cutoff=0.5)
    return f"Did you mean '{lower[near[0]]}'?" if near else f"{what}: {', '.join(known)}"


def check_shares(key: str, shares: tuple[float, ...], of: str, count: int) -> None:
    """Check that there is one probability for each of `count` values, and that they add up to 1."""
    if len(shares) != count:
        raise ValueError(f"{key} has {len(shares)} values, but {of} has {count}. Give one for each")
    if abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"{key} must add up to 1, got {sum(shares):g}")


def _said(error: ErrorDetails, where: str, changed: Collection[str]) -> str:
    message = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return _sentence(f"{where}: {message}")
    key = ".".join(map(str, error["loc"]))
    if error["loc"][0] in changed:
        where = COMMAND_LINE
    if error["type"] == "tuple_type":
        message = "Input should be a list, as in [a, b]"
    expected = re.findall(r"'([^']*)'", error.get("ctx", {}).get("expected", ""))
    is_word = error["type"] == "literal_error" and isinstance(error["input"], str)
    near = get_close_matches(error["input"], expected, n=1, cutoff=0.5) if is_word else []
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"{where}: {key}: {message}, got {error['input']!r}.{hint}"


def _sentence(text: str) -> str:
    return text if text.endswith("?") else f"{text}."


@cache
def docstrings(config: type) -> Mapping[str, str]:
    """Return the docstring below each key of a section, as one paragraph: its text in every front end.

    A package installed without its sources has none.
    """
    root = config.__module__.partition(".")[0]
    ours = [kind for kind in reversed(config.__mro__) if kind.__module__.partition(".")[0] == root]
    return {name: text for kind in ours for name, text in _own(kind)}


def _own(kind: type) -> Iterator[tuple[str, str]]:
    try:
        (tree,) = ast.parse(dedent(inspect.getsource(kind))).body
    except OSError:
        return
    for one, after in pairwise(tree.body if isinstance(tree, ast.ClassDef) else []):
        text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and isinstance(text, str):
            yield one.target.id, " ".join(text.split())
