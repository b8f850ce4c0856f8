"""Progress on stderr: a bar on a terminal, occasional plain lines if stderr is a file, a pipe or the log of a CI.

    extracting           ━━━━━━╸━━━━━━━━  1,411/2,000  0:22  0:09 left

Elapsed time and time left are for the phase, from its overall mean speed (`lbm_lora.progress.Pace`).
"""

import time
from collections.abc import Callable, Iterable

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column, Table
from rich.text import Text

from lbm_lora.progress import Pace, as_clock

QUIET_SECONDS = 2.0
"""Phases up to this long leave no line behind."""

_WIDTH = 100  # columns of the widest bar
_REFRESHES = 5  # a second
_LINE_SECONDS = 10.0  # from the first plain line of a phase to the second ...
_LINE_GROWTH = 0.5  # ... and later this part of the time so far, so that ten hours are some 80 lines,
_LINE_MOST = 480.0  # but so often that no CI takes the command for dead


class Bars:
    """A listener in the sense of `lbm_lora.progress.Progress`.

    On an interactive console a bar is shown while a phase runs. Elsewhere a phase reports how far it
    is after two seconds, after twelve, and then at growing intervals. In both, a phase of more than two seconds leaves
    one line: its name, its parts and its duration.

    Args:
        console: of rich, on stderr.
        say: writes one line that the user should read.
        clock: returns seconds.
    """

    def __init__(
        self, console: Console, say: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._say = say
        self._clock = clock
        self._what = ""
        self._pace = Pace(0, clock=clock)
        self._next_line = QUIET_SECONDS
        self._live: _Bar | None = None

    def start(self, total: int, what: str) -> None:
        """Begin a phase, which ends the previous one."""
        self.stop()
        self._what, self._pace = what, Pace(total, clock=self._clock)
        self._next_line = QUIET_SECONDS
        if self._console.is_interactive:
            self._live = _Bar(self._console, what, self._pace)
            self._live.start()

    def advance(self, n: int = 1) -> None:
        """Count `n` parts of the running phase as done; the last one ends the phase."""
        if not self._what:
            return
        self._pace.advance(n)
        if self._live is not None:
            self._live.follow()
        if self._pace.is_done:
            self.stop()
        elif self._live is None and self._pace.elapsed > self._next_line:
            elapsed = self._pace.elapsed
            self._next_line = elapsed + min(max(_LINE_SECONDS, elapsed * _LINE_GROWTH), _LINE_MOST)
            self._console.print(f"{self._what}: {how_far(self._pace)}", markup=False, highlight=False, soft_wrap=True)

    def note(self, message: str) -> None:
        """Write one line, above the bar if there is one."""
        self._say(message)

    def stop(self, *, finished: bool = True) -> None:
        """End the running phase, if any.

        Args:
            finished: whether it completed; a phase that ended by an error leaves no line.
        """
        if self._live is not None:
            self._live.stop()
            self._live = None
        seconds = self._pace.elapsed
        if self._what and finished and seconds > QUIET_SECONDS:
            count = f"{self._pace.done:,} " if self._pace.done else ""
            line = f"{self._what}: {count}done in {in_words(seconds)}"
            self._console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)
        self._what = ""


class _Bar(Progress):
    """The bar of one phase: one line in any terminal of 60 columns or more. A long description is cut."""

    def __init__(self, console: Console, what: str, pace: Pace) -> None:
        self._pace, self._screen = pace, console  # before rich asks for the first line
        super().__init__(
            TextColumn(
                "{task.description}", markup=False, table_column=Column(ratio=2, no_wrap=True, overflow="ellipsis")
            ),
            BarColumn(bar_width=None, table_column=Column(ratio=1, no_wrap=True)),
            _Numbers(pace),
            console=console,
            transient=True,
            refresh_per_second=_REFRESHES,
        )
        self._id = self.add_task(what, total=pace.total or None)

    def follow(self) -> None:
        """Redraw the bar with the current pace."""
        self.update(self._id, completed=self._pace.done)

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        """The line, as wide as the terminal up to a limit."""
        table = super().make_tasks_table(tasks)
        table.width = min(self._screen.width, _WIDTH)
        return table


class _Numbers(ProgressColumn):
    """Parts, elapsed time and time left, as far as they are known."""

    def __init__(self, pace: Pace) -> None:
        super().__init__(Column(no_wrap=True, justify="right"))
        self._pace = pace

    def render(self, task: Task) -> Text:
        """The cell; the pace knows more than rich's task."""
        pace, left = self._pace, self._pace.left
        count = f"{pace.done:,}/{pace.total:,}" if pace.total else f"{pace.done:,}" if pace.done else ""
        return Text("  ").join(
            Text(part, style=style)
            for part, style in (
                (count, "progress.download"),
                (as_clock(pace.elapsed), "progress.elapsed"),
                ("" if left is None else f"{as_clock(left)} left", "progress.remaining"),
            )
            if part
        )


def how_far(pace: Pace) -> str:
    """`129 of 2,000 in 2 s, about 29 s left`, or what is known of it."""
    of_total = f" of {pace.total:,}" if pace.total else ""
    left = "" if pace.left is None else f", about {in_words(pace.left)} left"
    return f"{pace.done:,}{of_total} in {in_words(pace.elapsed)}{left}"


def in_words(seconds: float) -> str:
    """`4 s`, `2 min 5 s`, `1 h 12 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
