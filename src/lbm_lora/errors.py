"""The errors of lbm-lora, with the exit code of each.

    LbmLoraError                 3   a defect in lbm-lora (never raised directly)
    ├── InputError               2   bad usage or bad input: one line, nothing written
    │   ├── CheckpointError          a file cannot be read as a checkpoint, or lacks required content
    │   ├── PairingError             two checkpoints do not belong together (names, shapes, non-finite values)
    │   ├── AdapterError             a file is not a supported adapter, or does not fit the model
    │   ├── WrongBaseError           an adapter was made from another base
    │   ├── PatternError             a name pattern is malformed or matches nothing
    │   ├── ConfigError              a configuration key, value or combination is invalid
    │   ├── ImageError               an image or mask cannot be read or does not fit
    │   ├── DataError                a data set cannot be read, or has too many corrupt samples
    │   └── OutputError              an output path cannot or must not be written
    ├── HubError                 2   a hub repository cannot be reached or does not exist
    ├── MissingExtraError        2   an optional dependency is not installed
    └── QualityError             1   the command ran, but its result misses the requested limit or lacks a part

Every message names the item, where it was found, both sides if two disagree, and what to do.
Messages are part of the interface: tests compare them word for word.

The remedy is often an option of the caller. It is data (`Option`) among the parts of a message: each front end spells
it in its own terms, as a flag, a key of a file or a widget; `str` spells it as a Python argument.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar


@dataclass(frozen=True)
class Option:
    """An option of the caller, by its name in a config.

    Attributes:
        name: `exclude`.
        value: what to give it: `drop`; several to choose from, `keep|drop`; or a placeholder in capitals, `FOLDER`.
        is_off: the option switched off.
    """

    name: str
    value: str = ""
    is_off: bool = False

    def __str__(self) -> str:
        if self.is_off:
            return f"{self.name}=False"
        if not self.value or self.value.isupper():
            return self.name
        return f"{self.name}=" + " or ".join(f'"{value}"' for value in self.value.split("|"))


Spelling = Callable[[Option], str]


def spelled(parts: Iterable[object], spelling: Spelling = str) -> str:
    """Return the text of a message whose parts are strings and options."""
    return "".join(spelling(part) if isinstance(part, Option) else str(part) for part in parts)


class LbmLoraError(Exception):
    """Base class of all errors. `exit_code` is the exit code of a command that ends with this error.

    Args:
        parts: the parts of the message, strings and options.
    """

    exit_code: ClassVar[int] = 3

    def __init__(self, *parts: str | Option) -> None:
        super().__init__(*parts)

    def __str__(self) -> str:
        return spelled(self.args)


class InputError(LbmLoraError, ValueError):
    """Bad usage or bad input. It is a ValueError too, so that callers may catch it as Python has it."""

    exit_code: ClassVar[int] = 2


class CheckpointError(InputError):
    """A file cannot be read as a checkpoint, or lacks required content."""


class PairingError(InputError):
    """Two checkpoints do not belong together."""


class AdapterError(InputError):
    """A file is not a supported adapter, or does not fit the model."""


class WrongBaseError(InputError):
    """An adapter was made from another base."""


class PatternError(InputError):
    """A name pattern is malformed or matches nothing."""


class ConfigError(InputError):
    """A configuration key, value or combination is invalid."""


class ImageError(InputError):
    """An image or mask cannot be read or does not fit."""


class DataError(InputError):
    """A data set cannot be read, or has too many corrupt samples."""


class OutputError(InputError):
    """An output path cannot or must not be written."""


class HubError(LbmLoraError):
    """A hub repository cannot be reached or does not exist."""

    exit_code: ClassVar[int] = 2


class MissingExtraError(LbmLoraError):
    """An optional dependency is not installed."""

    exit_code: ClassVar[int] = 2


class QualityError(LbmLoraError):
    """The command ran, but its result misses the requested limit or lacks a part."""

    exit_code: ClassVar[int] = 1


def listing(names: Iterable[str], *, limit: int = 8) -> str:
    """Join names for an error message: the first `limit`, then how many more there are."""
    shown = list(names)
    more = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more


def plural(count: int, noun: str, several: str = "") -> str:
    """`1 module`, `792 modules`, `1,676 tensors`, `2 matrices`.

    Args:
        several: the plural, where it is not made with an s.
    """
    return f"{count:,} {noun if count == 1 else several or f'{noun}s'}"


def need_packages(what: str, packages: Iterable[str], extra: str) -> None:
    """Check that the optional packages of a feature are installed.

    Raises:
        MissingExtraError: a package that `what` needs is missing; names every missing package and the extra.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise missing_extra(what, missing, extra)


def missing_extra(what: str, missing: Sequence[str], extra: str) -> MissingExtraError:
    """The error for work whose optional packages are not there. Its line ends with the command that installs them."""
    named = f"{', '.join(missing[:-1])} and {missing[-1]}, which are" if len(missing) > 1 else f"{missing[0]}, which is"
    return MissingExtraError(f'{what} needs {named} not installed. Run: pip install "lbm-lora[{extra}]"')


def give_one(one: str, other: str, what: str) -> ConfigError:
    """Return the error for two options that both do the same thing."""
    return ConfigError(Option(one), " and ", Option(other), f" both {what}. Give one of them.")
