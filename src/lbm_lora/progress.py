"""Progress and notes, sent to whichever front end listens.

A verb gets one object with the three methods of `Progress` and calls them; the command line draws bars on
stderr, a node of ComfyUI fills its bar, and a test records the calls. A library caller passes nothing.

What is wrong and stops nothing is a Python warning of one category, `LbmLoraWarning`, given by `warn` at any depth: a
front end shows it in its own way, and a library caller filters it as any other.
"""

import time
import warnings
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from lbm_lora.errors import Option, spelled


class LbmLoraWarning(UserWarning):
    """Something that the user should know, and that stops nothing. Its parts are those of an error."""

    def __str__(self) -> str:
        return spelled(self.args)


def warn(*parts: str | Option) -> None:
    """Warn in the name of the function that called the caller."""
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

    def __repr__(self) -> str:  # as signatures show it
        return "SILENT"

    def start(self, total: int, what: str) -> None:
        pass

    def advance(self, n: int = 1) -> None:
        pass

    def note(self, message: str) -> None:
        pass


SILENT: Progress = Silent()
"""The default of every verb."""


class Pace:
    """How far a phase is, how long it has run, and how long it has to go. The clock starts at construction.

    The time left comes from the mean over the whole phase, so that it jumps no further than one part can move that
    mean. It ticks down while a part is at work; once that part takes longer than the mean, it counts as if it ended
    now.

    Args:
        total: equal parts of the phase; 0: unknown.
        clock: seconds.

    Attributes:
        total, done: parts.
    """

    def __init__(self, total: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.done = total, 0
        self._clock = clock
        self._began = self._advanced = clock()

    def advance(self, n: int = 1) -> None:
        """`n` parts more are done."""
        self.done += n
        self._advanced = self._clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the phase began."""
        return self._clock() - self._began

    @property
    def is_done(self) -> bool:
        """Whether all parts are done; never where their number is unknown."""
        return self.done >= self.total > 0

    @property
    def left(self) -> float | None:
        """Seconds to the end of the phase, at least 0; None before the first part is done or without a total."""
        if self.done < 1 or not self.total:
            return None
        now, parts = self._clock(), max(0, self.total - self.done)
        if not parts:
            return 0.0
        as_so_far = (self._advanced - self._began) / self.done * parts - (now - self._advanced)
        if_this_part_ended_now = (now - self._began) / (self.done + 1) * (parts - 1)
        return max(as_so_far, if_this_part_ended_now)


def as_clock(seconds: float) -> str:
    """`0:04`, `2:05`, `1:12:00`, `100:12:00`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
