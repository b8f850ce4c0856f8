"""The options of a function: the fields of its verb's config, whose names, defaults and texts are defined there."""

import inspect
import re
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cached_property, wraps
from inspect import Parameter
from os import PathLike
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import torch
from pydantic import BaseModel, TypeAdapter, ValidationError

from lbm_lora.checkpoint import TORCH_NAMES, dtype_name
from lbm_lora.configs.docstrings import docstrings
from lbm_lora.errors import ConfigError, InputError, LbmLoraError, Option, home_path

_FLAG = re.compile(r"--(?=[a-z])")
"""What makes a flag (`--max_size`) of a name (`max_size`)."""

_PYTHON = {"base_model_path": "base", "tuned_model_path": "tuned", "lora_path": "lora"}
"""Option -> the parameter of a function that takes a value in its place; the option is hidden then."""

FOR_ONE = {
    "max_size": "Choose the ranks of all layers together: the best LoRA that a file of this size can hold (200MB)."
}
"""Texts of the options that other functions take several values of, for one that gives one LoRA."""

C = TypeVar("C")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class OptionField:
    """Field of a config, as a keyword argument.

    Attributes:
        hint: its type, and what a Python caller has in its place: text for a path, a list or one value for a tuple,
            a dtype of torch.
        default: the default; `Parameter.empty` if it must be given.
        doc: its help text, options by their Python names.
    """

    name: str
    hint: Any
    default: Any
    doc: str


class Options(Generic[C]):
    """The fields of a config that a function takes as keyword arguments.

    Args:
        config: a frozen dataclass or a pydantic model.
        hidden: fields that are not options of the function: it fills them in itself, or they make no sense in Python.
        texts: help texts for some options, in place of the config's.
        names: parameters that are named unlike a hidden field, besides the usual ones (`base` for `base_model_path`).
    """

    def __init__(
        self,
        config: type[C],
        hidden: Sequence[str] = (),
        texts: Mapping[str, str] | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        self._config, self._hidden, self._texts = config, frozenset(hidden), texts or {}
        self._names = {field: name for field, name in {**_PYTHON, **(names or {})}.items() if field in self._hidden}

    @cached_property
    def fields(self) -> dict[str, OptionField]:
        """The options by name, in the config's order."""
        docs = {**docstrings(self._config), **self._texts}
        return {
            name: OptionField(name, _widened(hint), default, self._in_python(docs.get(name, "")))
            for name, hint, default in _declared(self._config)
            if name not in self._hidden
        }

    def _in_python(self, text: str) -> str:
        """Return a help text with flags by the names of parameters."""
        plain = _FLAG.sub("", text)
        return re.sub(r"\b[a-z_]+\b", lambda match: self._names.get(match[0], match[0]), plain)

    def documented(self, function: F) -> F:
        """Return a function with `**options` with the signature and the docstring that name them.

        The errors of the function also name its parameters: `base` for `base_model_path`.
        """
        own = inspect.signature(function)
        named = [
            Parameter(one.name, Parameter.KEYWORD_ONLY, default=one.default, annotation=one.hint)
            for one in self.fields.values()
        ]
        kept = [one for one in own.parameters.values() if one.kind is not Parameter.VAR_KEYWORD]
        paths = {one.name for one in (*kept, *named) if "Path" in str(one.annotation)}
        progress = [one for one in kept if one.name == "progress"]
        kept = [one for one in kept if one.name != "progress"]

        @wraps(function)
        def call(*given: Any, **options: Any) -> Any:
            try:
                for name in paths & _empty(own, given, options):  # `.` to pathlib
                    raise ConfigError(Option(name), " needs a value, got an empty text.")
                at_home = {name: _at_home(value) if name in paths else value for name, value in options.items()}
                return function(*map(_at_home, given), **at_home)
            except LbmLoraError as error:
                error.args = tuple(map(self._renamed, error.args))
                raise

        call.__signature__ = own.replace(parameters=[*kept, *named, *progress])  # pyright: ignore[reportAttributeAccessIssue]
        call.__doc__ = self._with_options(inspect.cleandoc(function.__doc__ or ""))
        return cast(F, call)

    def _renamed(self, part: object) -> object:
        return replace(part, name=self._names.get(part.name, part.name)) if isinstance(part, Option) else part

    def bind(self, function: str, options: Mapping[str, Any], **values: Any) -> C:
        """The config of a call.

        Args:
            function: its name, for errors.
            options: as the caller gave them; paths may be text, tuples lists or one value, dtypes those of torch.
            values: of hidden fields.

        Raises:
            TypeError: an option that the function does not have; the nearest one is named.
            ConfigError: a value of the wrong type.
        """
        self.check_names(function, options)
        try:
            return TypeAdapter(self._config).validate_python({**self.plain(options), **values})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            refusal = first.get("ctx", {}).get("error")
            if isinstance(refusal, InputError):  # the config's own
                raise refusal from None
            what = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            raise ConfigError(Option(str(first["loc"][0])), f" {what}, got {first['input']!r}.") from None

    def check_names(self, function: str, options: Mapping[str, Any]) -> None:
        """Refuse an option that the function does not have.

        Raises:
            TypeError: as Python has it; the nearest option is named.
        """
        for name in options:
            if name not in self.fields:
                near = get_close_matches(name, self.fields, n=1, cutoff=0.5)
                hint = f" Did you mean '{near[0]}'?" if near else f" Options: {', '.join(self.fields)}."
                raise TypeError(f"{function}() got an unexpected keyword argument '{name}'.{hint}")

    def plain(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Values as the config's type checks take them."""
        return {name: _plain(value, self.fields[name].hint) for name, value in options.items()}

    def _with_options(self, doc: str) -> str:
        """The docstring with the options at the end of its `Args:`."""
        head, returns, tail = doc.partition("\nReturns:")
        return f"{head.rstrip()}\n{textwrap.indent(self.args(), '    ')}\n{returns}{tail}"

    def args(self) -> str:
        """A paragraph for each option, as a docstring's `Args:` has them."""
        return "\n".join(
            textwrap.fill(f"{one.name}: {one.doc}", 108, subsequent_indent="    ", break_on_hyphens=False)
            for one in self.fields.values()
        )


def _empty(signature: inspect.Signature, given: Sequence[Any], options: Mapping[str, Any]) -> set[str]:
    """Return the names of arguments that are empty texts."""
    try:
        named = signature.bind_partial(*given, **options).arguments
    except TypeError:  # the call itself says what is wrong
        return set()
    return {name for name, value in {**named, **options}.items() if isinstance(value, str) and not value}


def _at_home(value: Any) -> Any:
    """Return a path with the home folder in the place of `~`, which no shell has replaced; anything else as it is."""
    return home_path(value) if isinstance(value, str | Path) and str(value).startswith("~") else value


def _declared(config: type) -> Iterator[tuple[str, Any, Any]]:
    """Name, type and default of each field."""
    hints = get_type_hints(config)
    if is_dataclass(config):
        for one in fields(config):
            factory = one.default_factory
            default = one.default if factory is MISSING else factory()
            yield one.name, hints[one.name], Parameter.empty if default is MISSING else default
    else:
        for name, one in cast(type[BaseModel], config).model_fields.items():
            required = one.is_required()
            yield name, hints[name], Parameter.empty if required else one.get_default(call_default_factory=True)


def _widened(hint: Any) -> Any:
    """What a Python caller may give for a field of this type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Path:
        return Path | str
    if origin is Literal and "bf16" in arguments:
        return hint | torch.dtype
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        one = _widened(arguments[0])
        return one | Sequence[one]
    if origin in (Union, types.UnionType):
        return Union[tuple(_widened(one) for one in arguments)]  # noqa: UP007
    return hint


def _plain(value: Any, hint: Any) -> Any:
    """A value as the config's type checks take it."""
    choices = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if isinstance(value, str) and any("bf16" in get_args(one) for one in choices):
        value = {"fp32": torch.float32, **TORCH_NAMES}.get(value.removeprefix("torch."), value)
    if isinstance(value, torch.dtype):
        return "float" if value == torch.float32 else dtype_name(value)
    if isinstance(value, PathLike) and Path not in choices:
        value = str(value)
    if isinstance(value, int) and not isinstance(value, bool) and set(choices) == {str, Sequence[str]}:
        value = str(value)  # a size in bytes
    takes_several = any(get_origin(one) is Sequence for one in choices)
    is_one = isinstance(value, str | PathLike) or not isinstance(value, Sequence)
    return (value,) if takes_several and is_one and value is not None else value
