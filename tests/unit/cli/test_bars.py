"""Progress on stderr: plain lines where it is no terminal, bars where it is one."""

import io

import pytest
from rich.console import Console

from lbm_lora.cli.bars import Bars
from lbm_lora.progress import Progress


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


def test_it_is_a_progress(bars: Bars) -> None:
    listener: Progress = bars
    listener.note("found")


def test_short_phases_say_nothing(bars: Bars, clock: Clock, stderr: io.StringIO) -> None:
    bars.start(4, "reading")
    run(bars, clock, parts=4, seconds=0.5)
    assert stderr.getvalue() == ""


def test_long_phases_say_how_far_they_are_now_and_then(bars: Bars, clock: Clock, stderr: io.StringIO) -> None:
    bars.start(2000, "extracting [all]")
    run(bars, clock, parts=2000, seconds=1 / 64)
    assert stderr.getvalue().splitlines() == [
        "extracting [all]: 129 of 2,000, about 29 s left",
        "extracting [all]: 770 of 2,000, about 19 s left",
        "extracting [all]: 1,411 of 2,000, about 9 s left",
        "extracting [all]: 2,000 done in 31 s",
    ]


def test_a_phase_of_unknown_length_counts(bars: Bars, clock: Clock, stderr: io.StringIO) -> None:
    bars.start(0, "loading")
    run(bars, clock, parts=3, seconds=1.5)
    bars.stop()
    assert stderr.getvalue().splitlines() == ["loading: 2", "loading: 3 done in 4 s"]


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


def test_a_phase_that_an_error_ended_is_not_done(bars: Bars, clock: Clock, stderr: io.StringIO) -> None:
    bars.start(5, "translating")
    clock.now += 60
    bars.stop(finished=False)
    assert stderr.getvalue() == ""


def test_parts_beyond_the_last_phase_are_ignored(bars: Bars, stderr: io.StringIO) -> None:
    bars.advance()
    bars.start(1, "reading")
    bars.advance(3)
    bars.advance()
    assert stderr.getvalue() == ""


def test_a_terminal_gets_a_bar_that_goes_away(clock: Clock) -> None:
    stderr = io.StringIO()
    console = Console(file=stderr, force_terminal=True, width=80, color_system=None, _environ={"TERM": "xterm"})
    bars = Bars(console, lambda message: console.print(message), clock=clock)
    bars.start(3, "extracting [all]")
    bars.advance()
    bars.note("something was found")
    bars.advance()
    clock.now += 5
    bars.advance()
    shown = stderr.getvalue()
    assert "extracting [all] " in shown
    assert "0/3" in shown
    assert "3/3" in shown
    assert "something was found\n" in shown
    assert shown.endswith("extracting [all]: 3 done in 5 s\n")
    assert "\x1b[2K" in shown  # the bar's line is cleared
