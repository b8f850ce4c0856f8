"""Graceful shutdown: SIGTERM or Ctrl-C asks a run to save and stop; a second signal ends it at once.

A command without such a run ends at once, by an exception, so that nothing half-written stays behind.
"""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """A context that, from `listen` on, only records the two signals; on exit the old handlers return.

    Outside the main thread it does nothing.

    Attributes:
        asked: name of the signal received; empty if none was.
    """

    def __init__(self) -> None:
        self.asked = ""
        self._before: dict[signal.Signals, signal._HANDLER] = {}  # pyright: ignore[reportPrivateUsage]

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        return self

    def listen(self) -> None:
        """Start recording the signals."""
        for number in self._before:
            signal.signal(number, self._note)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.asked = signal.Signals(number).name
        for known in self._before:
            signal.signal(known, signal.default_int_handler if known is signal.SIGINT else signal.SIG_DFL)


def leave_to_parent(_worker: int) -> None:
    """Make a data-loading process ignore both signals: they may reach the process group, and its parent ends it."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Terminated(KeyboardInterrupt):
    """SIGTERM, as an exception."""


@contextmanager
def terminated_as_exception() -> Generator[None]:
    """Raise `Terminated` where the main thread is when SIGTERM comes, as Python does for Ctrl-C."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is half-written is being removed
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
