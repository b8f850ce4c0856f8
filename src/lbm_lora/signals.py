"""Graceful shutdown: SIGTERM, SIGHUP or Ctrl-C asks a run to save and stop; a second signal ends it at once.

A command without such a run ends at once, by an exception, so that nothing half-written stays behind. SIGHUP, which a
closed terminal sends, is left alone where it is ignored (nohup), and may come twice.
"""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

_ENDING = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]  # Windows has no SIGHUP
_SIGNALS = (*_ENDING, signal.SIGINT)


class StopRequest:
    """A context that, from `listen` on, only records the signals; on exit the old handlers return.

    Outside the main thread it does nothing.

    Attributes:
        asked: name of the signal received; empty if none was.
    """

    def __init__(self) -> None:
        self.asked = ""
        self._before: dict[signal.Signals, signal._HANDLER] = {}  # pyright: ignore[reportPrivateUsage]

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in _SIGNALS if not _is_nohup(number)}
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
            signal.signal(known, _SECOND.get(known, signal.SIG_IGN))


_SECOND = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
"""Handlers for a second signal. A second SIGHUP is ignored, because the shell and the kernel may each send one."""


def _is_nohup(number: signal.Signals) -> bool:
    return number not in _SECOND and signal.getsignal(number) == signal.SIG_IGN


def leave_to_parent(_worker: int) -> None:
    """Make a data-loading process ignore the signals: they may reach the process group, and its parent ends it."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, as an exception.

    Args:
        number: the signal.
    """

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.number = number


@contextmanager
def terminated_as_exception() -> Generator[None]:
    """Raise `Terminated` where the main thread is when SIGTERM or SIGHUP comes, as Python does for Ctrl-C."""
    is_main = threading.current_thread() is threading.main_thread()
    ours = [number for number in _ENDING if is_main and signal.getsignal(number) == signal.SIG_DFL]

    def end(number: int, _frame: FrameType | None) -> None:
        for one in ours:
            signal.signal(one, signal.SIG_IGN)  # what is half-written is being removed
        raise Terminated(number)

    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
