"""The errors of lbm-lora, and the exit code that each one ends a command with.

    LbmLoraError                 3   a defect of ours (never raised as such)
    ├── InputError               2   bad usage or bad input: one line, nothing written
    │   ├── CheckpointError          a file cannot be read as a checkpoint, or lacks what it must hold
    │   ├── PairingError             two checkpoints do not belong together (names, shapes, non-finite values)
    │   ├── AdapterError             a file is no adapter we can read, or does not fit the model
    │   ├── WrongBaseError           an adapter was made for another base
    │   ├── PatternError             a name pattern that is malformed or matches nothing
    │   ├── ConfigError              a configuration key, value or combination that cannot be
    │   ├── ImageError               an image or mask that cannot be read or does not fit
    │   ├── DataError                a data set that cannot be read, or with too many corrupt samples
    │   └── OutputError              an output path that cannot or must not be written
    ├── HubError                 2   a hub repository that cannot be reached or does not exist
    ├── MissingExtraError        2   an optional dependency is not installed
    └── QualityError             1   the work ran, and its result is below the asked limit

Messages follow one form: the thing, where it was found, both sides where two disagree, and what to do.
They are part of the interface: tests compare them word for word.
"""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import ClassVar


class LbmLoraError(Exception):
    """Root of the tree. `exit_code` is what a command ends with when the error reaches its front end."""

    exit_code: ClassVar[int] = 3


class InputError(LbmLoraError):
    """Bad usage or bad input."""

    exit_code: ClassVar[int] = 2


class CheckpointError(InputError):
    """A file cannot be read as a checkpoint, or lacks what it must hold."""


class PairingError(InputError):
    """Two checkpoints do not belong together."""


class AdapterError(InputError):
    """A file is no adapter we can read, or it does not fit the model."""


class WrongBaseError(InputError):
    """An adapter was made for another base."""


class PatternError(InputError):
    """A name pattern is malformed or matches nothing."""


class ConfigError(InputError):
    """A configuration key, value or combination that cannot be."""


class ImageError(InputError):
    """An image or mask cannot be read or does not fit."""


class DataError(InputError):
    """A data set cannot be read, or too many of its samples are corrupt."""


class OutputError(InputError):
    """An output path cannot or must not be written."""


class HubError(LbmLoraError):
    """A hub repository cannot be reached or does not exist."""

    exit_code: ClassVar[int] = 2


class MissingExtraError(LbmLoraError):
    """An optional dependency is not installed."""

    exit_code: ClassVar[int] = 2


class QualityError(LbmLoraError):
    """The work ran, and its result is below the asked limit."""

    exit_code: ClassVar[int] = 1


def listing(names: Iterable[str], *, limit: int = 8) -> str:
    """Names for an error line: the first `limit` of them, and how many more there are."""
    shown = list(names)
    more = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more


def need_packages(what: str, packages: Iterable[str], extra: str) -> None:
    """Refuse work whose optional packages are not there.

    Raises:
        MissingExtraError: one of the packages that `what` needs is not installed; all such are named, and the extra.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise MissingExtraError(
            f'{what} needs {", ".join(missing)}, which is not installed: pip install "lbm-lora[{extra}]".'
        )
