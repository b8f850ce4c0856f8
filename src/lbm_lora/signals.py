"""SIGTERM and Ctrl-C ask a run to save and stop; the second one ends it at once."""

import signal
import threading
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """A context in which the two signals only leave a note, from `listen` on; afterwards they are as before.

    Elsewhere than in the main thread it does nothing.

    Attributes:
        asked: name of the signal that came; empty as long as none did.
    """

    def __init__(self) -> None:
        self.asked = ""
        self._before: dict[signal.Signals, signal._HANDLER] = {}  # pyright: ignore[reportPrivateUsage]

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        return self

    def listen(self) -> None:
        """Take the signals."""
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
    """Let a process that reads data ignore both signals, which may reach a whole process group: its parent ends it."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
