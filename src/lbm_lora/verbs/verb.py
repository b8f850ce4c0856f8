"""What makes a function a verb: its signature is the flags, its docstring the help, in Python and on the command line.

    @verb("add LoRAs to a checkpoint's weights", group=EVERYDAY, examples=(...), text=_text)
    def fuse(base: Base, lora: Several[Lora], *, save_to: Output = None, ...) -> tuple[dict[str, Tensor], FuseResult]:

The function returns what a Python caller gets, and the result that the command line prints.
"""

import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, ParamSpec, TypeVar, cast, get_args, get_origin, get_type_hints

from lbm_lora.errors import ConfigError, LbmLoraError, Option, home_path
from lbm_lora.verbs.options import VALUE, Doc, FlagName

P = ParamSpec("P")
V = TypeVar("V")

START, EVERYDAY, MORE = "start here", "everyday", "more"
GROUPS = (START, EVERYDAY, MORE)


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A verb of the command line.

    Attributes:
        function: takes the parameters, and returns a value for Python and the result.
        what: its effect, for `lbm-lora --help`.
        group: its heading there.
        examples: command lines for its help; tests parse them.
        text: the text of its result; with a second argument, every layer too.
    """

    function: Callable[..., tuple[Any, Any]]
    what: str
    group: str
    examples: tuple[str, ...]
    text: Callable[[Any, bool], str]

    @property
    def summary(self) -> str:
        """Its docstring without `Args:` and what follows, with flags in the place of parameters."""
        text = re.split(r"\n\n(?:Args|Returns|Raises):", inspect.getdoc(self.function) or "")[0]
        return with_flags(text, parameters(self.function))


@dataclass(frozen=True)
class Parameter:
    """A parameter of a verb, with what its annotation and the docstring say of it."""

    name: str
    hint: Any
    default: Any
    marks: tuple[Any, ...]
    doc: str

    @property
    def flag(self) -> str:
        """Name on the command line, and in the errors of the layers below."""
        return next((mark.name for mark in self.marks if isinstance(mark, FlagName)), self.name)


def verb(
    what: str, *, group: str = MORE, examples: Sequence[str], text: Callable[[Any, bool], str]
) -> Callable[[Callable[P, tuple[V, Any]]], Callable[P, V]]:
    """Make a function a verb; see `Verb`.

    A call from Python checks its values, and returns the first of the pair. It raises a missed limit unless the
    returned result reports it.
    """

    def decorated(function: Callable[P, tuple[V, Any]]) -> Callable[P, V]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> V:
            known = parameters(function)
            own = inspect.signature(function).bind(*args, **kwargs).arguments
            given = {**own.pop("keys", {}), **own}
            try:
                checked = {name: _checked(known[name], value) for name, value in given.items() if name in known}
                value, result = cast(Any, function)(**{**given, **checked})
                for failure in () if value is result else getattr(result, "failures", ()):
                    raise failure
                return value
            except LbmLoraError as error:
                names = {one.flag: name for name, one in known.items()}
                error.args = tuple(
                    replace(part, name=names.get(part.name, part.name)) if isinstance(part, Option) else part
                    for part in error.args
                )
                raise

        made = Verb(function=function, what=what, group=group, examples=tuple(examples), text=text)
        call.verb = made  # pyright: ignore[reportAttributeAccessIssue]
        return call

    return decorated


def with_result(verb: Callable[P, V]) -> Callable[P, tuple[V, Any]]:
    """Return a verb as the command line calls it: with values of the right types, for the pair of its results."""
    return cast(Any, verb).verb.function


def one_of(several: Callable[P, list[V]]) -> Callable[P, V]:
    """Return `NAME`, a verb for exactly one LoRA, of `NAME_several`: it has no `ranks`, and refuses several sizes."""
    name = several.__name__.removesuffix("_several")

    @wraps(several)
    def call(*args: P.args, **kwargs: P.kwargs) -> V:
        for option in ("ranks", "max_size"):
            values = cast(Any, kwargs.get(option, ()))
            if isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 1:
                count = f" asks for {len(values)} LoRAs, {name} gives one. Call {name}_several."
                raise ConfigError(Option(option), count)
        return several(*args, **kwargs)[0]

    own = inspect.signature(several)
    kept = [one for one in own.parameters.values() if one.name != "ranks"]
    call.__name__ = call.__qualname__ = name
    call.__signature__ = own.replace(parameters=kept)  # pyright: ignore[reportAttributeAccessIssue]
    return call


def as_flag(option: Option) -> str:
    """Return how the command line spells an option: `--exclude`, `--biases keep|drop`, `--no_dense`."""
    return f"--no_{option.name}" if option.is_off else f"--{option.name} {option.value}".rstrip()


@cache
def parameters(function: Callable[..., Any]) -> dict[str, Parameter]:
    """Return the parameters of a verb by name, without the listener of its progress and the keys of a training file."""
    names = inspect.signature(function).parameters.keys() - {"progress", "keys"}
    holder = SimpleNamespace(__annotations__={name: function.__annotations__[name] for name in names})
    hints = get_type_hints(holder, globalns=vars(sys.modules[function.__module__]), include_extras=True)
    own = _documented(inspect.getdoc(function) or "")
    found: dict[str, Parameter] = {}
    for name, one in inspect.signature(function).parameters.items():
        if name in names:
            marks = tuple(_marks(hints[name]))
            doc = own.get(name) or next((mark.text for mark in marks if isinstance(mark, Doc)), "")
            found[name] = Parameter(name, hints[name], one.default, marks, doc)
    return found


def with_flags(text: str, known: Mapping[str, Parameter]) -> str:
    """Return a text with flags in the place of parameters: `rank` -> --rank, `dense=False` -> --no_dense."""

    def flag_of(match: re.Match[str]) -> str:
        name, off = match.groups()
        return f"--{'no_' if off else ''}{known[name].flag}" if name in known else match[0]

    return re.sub(r"`(\w+)(=False)?`", flag_of, text)


def _documented(doc: str) -> dict[str, str]:
    """Return the entries of a docstring's `Args:`, each as one paragraph."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in doc.partition("\n\nArgs:\n")[2].partition("\n\n")[0].splitlines():
        if line[:5].strip():
            name, _, text = line.strip().partition(": ")
            lines = found[name] = [text]
        else:
            lines.append(line.strip())
    return {name: " ".join(paragraph) for name, paragraph in found.items()}


def _marks(hint: Any) -> list[Any]:
    """Return the marks anywhere in an annotation, the outermost first."""
    inner = [mark for part in get_args(hint)[:1] for mark in _marks(part)]
    return [*reversed(getattr(hint, "__metadata__", ())), *inner]


def _checked(one: Parameter, value: Any) -> Any:
    """Return a value of a Python caller as the verb takes it: one value as a tuple, a dtype by its name.

    Raises:
        ConfigError: its type or range is wrong.
    """
    from pydantic import TypeAdapter, ValidationError

    if isinstance(value, str | Path) and str(value).startswith("~"):
        value = home_path(value)
    if value == "" and value is not one.default:
        raise ConfigError(Option(one.flag), " needs a value, got an empty text.")
    if VALUE in one.marks or value is one.default:
        return value
    if type(value).__module__ == "torch":
        value = str(value).removeprefix("torch.")
    if value in ("fp32", "float32", "float16", "bfloat16") and "float" in str(one.hint):
        value = {"float16": "fp16", "bfloat16": "bf16"}.get(str(value), "float")
    hint = get_args(one.hint)[0] if get_origin(one.hint) is Annotated else one.hint
    if get_origin(hint) is tuple:
        several = [value] if isinstance(value, str | Path) or not isinstance(value, Sequence) else value
        value = tuple(str(size) if isinstance(size, int) and hint == tuple[str, ...] else size for size in several)
    try:
        return TypeAdapter(one.hint).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        raise ConfigError(Option(one.flag), f" {what}, got {first['input']!r}.") from None
