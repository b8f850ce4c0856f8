"""Warnings and their parts, the pace of a phase, and the listener that ignores everything."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from lbm_lora.errors import Option
from lbm_lora.progress import LbmLoraWarning, Pace, warn

PARTS = ("size 100 is no bucket: give ", Option("size"), " 128, or ", Option("dense", is_off=True), ".")


def test_a_warning_reads_as_its_parts() -> None:
    with pytest.warns(LbmLoraWarning) as caught:
        warn(*PARTS)
    (one,) = caught
    assert str(one.message) == "size 100 is no bucket: give size 128, or dense=False."


SCRIPT = """\
from lbm_lora.progress import warn

def work():
    warn("look here")

work()
"""


def test_a_warning_names_the_line_that_called_the_function_that_warns(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=120)
    assert done.stderr == f"{script}:6: LbmLoraWarning: look here\n  work()\n"


class Clock:
    """Seconds that pass when the test says so."""

    now = 50.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_comes_from_the_mean_of_all_parts() -> None:
    clock = Clock()
    pace = Pace(10, clock=clock)
    clock.now += 4
    assert (pace.left, pace.elapsed) == (None, 4)
    for seconds, left in ((0, 36), (2, 24), (3, 21)):
        clock.now += seconds
        pace.advance()
        assert pace.left == left
    assert not pace.is_done
    pace.advance(7)
    assert (pace.left, pace.is_done) == (0, True)


def test_the_time_left_ticks_down_while_a_part_is_at_work_and_never_leaps() -> None:
    """Parts of very different lengths: one of a hundred times the others' in the middle."""
    clock = Clock()
    pace = Pace(40, clock=clock)
    shown: list[float] = []
    for seconds in [2] * 20 + [200] + [2] * 19:
        for _ in range(seconds * 4):
            if pace.left is not None:
                shown.append(pace.left)
            clock.now += 0.25
        pace.advance()
    assert shown[:8] == [78 - tick / 4 for tick in range(8)]
    assert min(shown) >= 0
    leaps = [after - before for before, after in pairwise(shown)]
    assert max(leaps) <= 0.25, "a slow part makes it climb no faster than a clock"
    assert shown[-1] <= 7
