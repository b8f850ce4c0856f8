"""How the work says how far it is and what the user should know, without knowing who listens.

A workflow gets one object with the three methods of `Progress` and calls them; the command line draws bars on
stderr, the app fills its own widget, and a test records the calls. A library caller passes nothing.

What is wrong and stops nothing is a Python warning of one category, `LbmLoraWarning`, given by `warn` at any depth: a
front end shows it in its own way, and a library caller filters it as any other.
"""

import warnings
from typing import Protocol, runtime_checkable

from lbm_lora.errors import Option, spelled


class LbmLoraWarning(UserWarning):
    """Something that the user should know, and that stops nothing. Its parts are those of an error."""

    def __str__(self) -> str:
        return spelled(self.args)


def warn(*parts: str | Option) -> None:
    """Give a warning, in the name of the function that called the caller."""
    warnings.warn(LbmLoraWarning(*parts), stacklevel=3)


@runtime_checkable
class Progress(Protocol):
    """A listener. One phase runs at a time: the next `start` ends the one before."""

    def start(self, total: int, what: str) -> None:
        """A phase begins: `total` equal parts (0: unknown), described by `what` ("translating images")."""
        ...

    def advance(self, n: int = 1) -> None:
        """`n` parts of the running phase are done."""
        ...

    def note(self, message: str) -> None:
        """One line that the user should read: something applied, found or assumed."""
        ...


class Silent:
    """The listener that ignores everything."""

    def start(self, total: int, what: str) -> None:
        """Ignored."""

    def advance(self, n: int = 1) -> None:
        """Ignored."""

    def note(self, message: str) -> None:
        """Ignored."""


SILENT: Progress = Silent()
"""The default of every workflow."""
