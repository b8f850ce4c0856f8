"""Progress on stderr: bars on a terminal, now and then a plain line where stderr is a file or a pipe."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

QUIET_SECONDS = 2.0
"""Phases up to this long leave no line behind."""

_LINE_SECONDS = 10.0  # between two plain lines of one phase


class Bars:
    """A listener in the sense of `lbm_lora.progress.Progress`.

    On a terminal a bar stands while a phase runs and goes away with it. Elsewhere a phase says how far it is after
    two seconds, and then every ten. In both, a phase of more than two seconds leaves one line: what, how many, how
    long.

    Args:
        console: of rich, on stderr.
        say: writes one line that the user should read.
        clock: seconds.
    """

    def __init__(
        self, console: Console, say: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._say = say
        self._clock = clock
        self._what = ""
        self._total = self._done = 0
        self._began = self._spoke = 0.0
        self._live: tuple[Progress, TaskID] | None = None

    def start(self, total: int, what: str) -> None:
        """A phase begins; the one before it ends."""
        self.stop()
        self._what, self._total, self._done = what, total, 0
        self._began = self._clock()
        self._spoke = self._began + QUIET_SECONDS - _LINE_SECONDS
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            bar = Progress(*columns, console=self._console, transient=True)
            self._live = bar, bar.add_task(what, total=total or None)
            bar.start()

    def advance(self, n: int = 1) -> None:
        """`n` parts of the running phase are done; with the last one the phase ends."""
        if not self._what:
            return
        self._done += n
        if self._live is not None:
            bar, task = self._live
            bar.advance(task, n)
        elif self._clock() - self._spoke > _LINE_SECONDS:
            self._spoke = self._clock()
            self._console.print(self._how_far(), markup=False, highlight=False, soft_wrap=True)
        if self._done >= self._total > 0:
            self.stop()

    def note(self, message: str) -> None:
        """One line, above the bar where one stands."""
        self._say(message)

    def stop(self, *, finished: bool = True) -> None:
        """End the running phase, if any.

        Args:
            finished: whether it came to its end; a phase that an error ended leaves no line.
        """
        if self._live is not None:
            self._live[0].stop()
            self._live = None
        seconds = self._clock() - self._began
        if self._what and finished and seconds > QUIET_SECONDS:
            count = f"{self._done:,} " if self._done else ""
            line = f"{self._what}: {count}done in {_duration(seconds)}"
            self._console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)
        self._what = ""

    def _how_far(self) -> str:
        if not self._total:
            return f"{self._what}: {self._done:,}"
        left = (self._clock() - self._began) / self._done * (self._total - self._done) if self._done else 0.0
        return f"{self._what}: {self._done:,} of {self._total:,}, about {_duration(left)} left"


def _duration(seconds: float) -> str:
    """`4 s`, `2 min 5 s`, `1 h 12 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
