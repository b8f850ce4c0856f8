"""The flags of a command: the parameters of its verb, with their texts as help."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Interval

from lbm_lora.verbs.options import ADVANCED, HIDDEN, POSITIONAL, REQUIRED, Mark, Named
from lbm_lora.verbs.verb import Parameter, parameters, with_flags

_WORDS = {str: "TEXT", Path: "PATH", int: "N", float: "NUMBER", bool: ""}


@dataclass(frozen=True)
class Bounds:
    """Smallest and largest number that an option takes."""

    least: float
    most: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One option of a command line.

    Attributes:
        name: name on the command line.
        kind: type of one value: str, Path, int, float or bool.
        word: placeholder for the value in the help; empty for a switch.
        about: its effect, in one paragraph.
        default: what it is without the flag; `MISSING` if a value must be given.
        takes_text: whether a number may also be a text with a `=`.
        choices: the allowed values, if they are words.
        takes_several: whether it takes one or more values.
        bounds: least and greatest number that is allowed, if any.
        marks: marks in its annotation.
        parameter: name in Python.
    """

    name: str
    kind: type
    word: str
    about: str
    default: Any
    takes_text: bool = False
    choices: tuple[str, ...] = ()
    takes_several: bool = False
    bounds: Bounds | None = None
    marks: frozenset[Any] = frozenset()
    parameter: str = ""

    @property
    def is_required(self) -> bool:
        """Whether a value must be given."""
        return self.default is MISSING

    @property
    def is_positional(self) -> bool:
        """Whether it is given as a word without its name."""
        return POSITIONAL in self.marks

    @property
    def is_advanced(self) -> bool:
        """Whether it is listed after the options that most runs need."""
        return ADVANCED in self.marks

    @property
    def is_switch(self) -> bool:
        """Whether it is given as --name or --no_name, without a value."""
        return self.kind is bool

    @property
    def shown(self) -> str:
        """Name in messages: `--rank`, FOLDER."""
        return self.word if self.is_positional else f"--{self.name}"

    @property
    def usage(self) -> str:
        """Name with its value: `--rank N`, `--lora_path FILE ...`, `FOLDER`."""
        several = " ..." if self.takes_several else ""
        if self.is_positional:
            return self.word + several
        return f"--{self.name} {self.word}{several}" if self.word else f"--{self.name}"


def flags_of(function: Callable[..., Any]) -> tuple[Flag, ...]:
    """Return the flags of a verb, in the order of its parameters, without those for Python only."""
    known = parameters(function)
    return tuple(_flag_of(one, known) for one in known.values() if HIDDEN not in one.marks)


def _flag_of(one: Parameter, known: Mapping[str, Parameter]) -> Flag:
    kind, extras, several = taken_apart(one.hint)
    choices = tuple(map(str, get_args(kind))) if get_origin(kind) is Literal else ()
    takes_text = kind == float | str
    kind = str if choices else float if takes_text else kind
    word = next((mark.word for mark in extras if isinstance(mark, Named)), "|".join(choices) or _WORDS[kind])
    limits: Any = next((mark for mark in extras if isinstance(mark, Interval)), None)
    bounds = limits and Bounds(limits.ge, math.inf if limits.le is None else limits.le)
    is_required = one.default is inspect.Parameter.empty or REQUIRED in extras

    return Flag(
        name=one.flag,
        kind=kind,
        word=word,
        about=with_flags(one.doc, known),
        default=MISSING if is_required else one.default,
        takes_text=takes_text,
        choices=choices,
        takes_several=several,
        bounds=bounds,
        marks=frozenset(mark for mark in extras if isinstance(mark, Mark)),
        parameter=one.name,
    )


def taken_apart(hint: Any) -> tuple[Any, list[Any], bool]:
    """Return the bare type, its marks, and whether it was a tuple.

    A number or text stays a union.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind, extras, several = taken_apart(parts[0])
        return kind, [*reversed(parts[1:]), *extras], several
    if origin in (UnionType, Union) and parts != (float, str):
        *one, kept = (part for part in parts if part is not NoneType)
        if one and get_origin(kept) is not tuple:
            raise TypeError(f"{hint}: one value or several (T | tuple[T, ...]) is the only union that a flag takes")
        return taken_apart(kept)
    if origin is tuple:
        kind, extras, _ = taken_apart(parts[0])
        return kind, extras, True
    return hint, [], False
