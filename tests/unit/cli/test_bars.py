"""Progress on stderr: plain lines where it is no terminal, bars where it is one."""

import io
import re
from itertools import groupby

import pytest
from rich.console import Console

from lbm_lora.cli.bars import Bars


class Clock:
    """Seconds that pass when the test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stderr() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def bars(stderr: io.StringIO, clock: Clock) -> Bars:
    """Bars on a file, whose notes are written as `note: ...`."""
    console = Console(file=stderr, force_terminal=False)
    return Bars(console, lambda message: console.print(f"note: {message}"), clock=clock)


def run(bars: Bars, clock: Clock, *, parts: int, seconds: float) -> None:
    for _ in range(parts):
        clock.now += seconds
        bars.advance()


def test_long_phases_say_how_far_they_are_now_and_then(bars: Bars, clock: Clock, stderr: io.StringIO) -> None:
    bars.start(2000, "extracting [all]")
    run(bars, clock, parts=2000, seconds=1 / 64)
    assert stderr.getvalue().splitlines() == [
        "extracting [all]: 129 of 2,000 in 2 s, about 29 s left",
        "extracting [all]: 770 of 2,000 in 12 s, about 19 s left",
        "extracting [all]: 1,411 of 2,000 in 22 s, about 9 s left",
        "extracting [all]: 2,000 done in 31 s",
    ]


def test_hours_leave_some_dozens_of_lines_and_no_quarter_of_an_hour_without_one(
    bars: Bars, clock: Clock, stderr: io.StringIO
) -> None:
    bars.start(10_000, "training")
    lengths: list[int] = []
    for _ in range(10_000):
        run(bars, clock, parts=1, seconds=3.6)
        lengths.append(stderr.getvalue().count("\n"))
    silent = max(len(list(same)) for _, same in groupby(lengths)) * 3.6
    assert 60 < lengths[-1] < 100
    assert silent < 9 * 60
    assert "\x1b" not in stderr.getvalue()
    assert "\r" not in stderr.getvalue()


def test_the_next_phase_ends_the_one_before(bars: Bars, clock: Clock, stderr: io.StringIO) -> None:
    bars.start(0, "loading the model")
    clock.now += 125
    bars.start(5, "translating")
    bars.advance(2)
    clock.now += 4000
    bars.stop()
    bars.stop()
    assert stderr.getvalue().splitlines() == [
        "loading the model: done in 2 min 5 s",
        "translating: 2 done in 1 h 6 min",
    ]


class Screen:
    """A terminal of some width, and what a bar draws on it."""

    def __init__(self, width: int, clock: Clock, **environment: str) -> None:
        self.file = io.StringIO()
        self.console = Console(
            file=self.file,
            force_terminal=True,
            width=width,
            color_system="truecolor",
            _environ={"TERM": "xterm"} | environment,
        )
        self.bars = Bars(self.console, lambda message: self.console.print(message), clock=clock)

    def line(self) -> str:
        """The line as it stands now: the bar is drawn anew."""
        live = self.bars._live
        assert live is not None
        live.follow()
        self.file.truncate(self.file.seek(0))
        live.refresh()
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", self.file.getvalue())


def test_a_terminal_gets_a_bar_that_goes_away(clock: Clock) -> None:
    screen = Screen(80, clock)
    screen.bars.start(3, "extracting [all]")
    screen.bars.advance()
    screen.bars.note("something was found")
    screen.bars.advance()
    clock.now += 5
    screen.bars.advance()
    shown = screen.file.getvalue()
    assert "extracting [all] " in shown
    assert "0/3" in shown
    assert "3/3" in shown
    assert "something was found\n" in shown
    assert shown.endswith("extracting [all]: 3 done in 5 s\x1b[0m\n")
    assert "\x1b[2K" in shown  # the bar's line is cleared


@pytest.mark.parametrize("width", [60, 300])
@pytest.mark.parametrize("what", ["training", "measuring the tuned model on very many images of some folder [x]"])
def test_a_bar_is_one_line_at_any_width_and_cuts_only_the_description(clock: Clock, width: int, what: str) -> None:
    screen = Screen(width, clock)
    screen.bars.start(200_000, what)
    clock.now += 50 * 3600
    screen.bars.advance(99_999)
    line = screen.line()
    assert "\n" not in line
    assert len(line) <= min(width, 100)
    assert line.endswith("99,999/200,000  50:00:00  50:00:04 left")
    assert line.startswith(what[:10])
    assert "…" in line or what in line
    screen.bars.stop()


def test_no_color_leaves_the_bar_and_a_dumb_terminal_gets_lines(clock: Clock) -> None:
    screen = Screen(80, clock, NO_COLOR="1")
    screen.bars.start(2, "extracting")
    screen.bars.advance()
    assert re.findall(r"\x1b\[[0-9;]*(3|4|9)[0-9]m", screen.file.getvalue()) == []
    assert screen.line().startswith("extracting")
    screen.bars.stop()
    dumb = Screen(80, clock, TERM="dumb")
    dumb.bars.start(2, "extracting")
    clock.now += 3
    dumb.bars.advance()
    assert dumb.file.getvalue() == "extracting: 1 of 2 in 3 s, about 3 s left\n"
