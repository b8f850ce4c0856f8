"""Killed at any moment, a command leaves the old file or the new one, and a rerun succeeds.

Half of the points are random times, the other half operations that change the disk: the process is killed before the
n-th one.
"""

import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults.goods import Goods
from faults.harness import Worker, contents
from faults.writing import NAMES, Writing, finish, refilled, start, unbroken, writing_named

pytestmark = [pytest.mark.faults, pytest.mark.slow]

POINTS = int(os.environ.get("KILL_POINTS", "90"))
SEED = os.environ.get("KILL_SEED", "0")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
BEFORE_MAIN = 70
"""The fork was interrupted before the command began."""
CODES = {
    signal.SIGKILL: {0, -signal.SIGKILL},
    signal.SIGTERM: {0, -signal.SIGTERM, 143, BEFORE_MAIN},
    signal.SIGINT: {0, 130, BEFORE_MAIN},
    signal.SIGHUP: {0, -signal.SIGHUP, 129, BEFORE_MAIN},
}
"""Exit codes that a signal may end in: 0 where the work was done, or where a training saved and stopped."""


@dataclass(frozen=True)
class Point:
    """Where a command is killed: after some seconds, or before an operation that changes the disk."""

    number: signal.Signals
    seconds: float = 0
    operation: int = 0

    def __str__(self) -> str:
        return f"{self.number.name} " + (
            f"before operation {self.operation}" if self.operation else f"after {self.seconds:.3f} s"
        )


def parts(found: dict[str, str]) -> list[str]:
    return [name for name in found if ".part" in name]


def without_parts(found: dict[str, str]) -> dict[str, str]:
    """What SIGKILL leaves beside the outputs is read by nothing, and stays."""
    return {name: digest for name, digest in found.items() if ".part" not in name}


def killed(worker: Worker, writing: Writing, folder: Path, point: Point) -> tuple[int, str]:
    """Run the command and kill it; returns its exit code and what it said."""
    log = folder.with_suffix(".log")
    if point.operation:
        patch = {"folder": str(folder), "at": point.operation, "number": int(point.number)}
        code = finish(worker, start(worker, writing, folder, log, patch=patch))
    else:
        pid = start(worker, writing, folder, log)
        time.sleep(point.seconds)
        os.kill(pid, point.number)
        code = finish(worker, pid)
    return code, log.read_text()


def problem_of(
    point: Point, code: int, text: str, old: dict[str, str], new: dict[str, str], left: dict[str, str]
) -> str:
    """What is wrong after a kill.

    Args:
        old: contents of the folder before.
        new: contents of it after an unbroken run.
        left: contents of it now.
    """
    if code not in CODES[point.number] or ("Traceback" in text and code != BEFORE_MAIN):
        return f"exit code {code}: {text[-300:]}"
    damaged = [name for name, digest in old.items() if left.get(name) not in (digest, new[name])]
    if damaged:
        return f"{damaged} is neither old nor new"
    if point.number is not signal.SIGKILL and parts(left):
        return f"left {parts(left)}"
    return ""


def points_of(name: str, seconds: float, operations: int) -> list[Point]:
    """Its part of all points, the signals in turn."""
    count = -(-POINTS // len(NAMES))
    draw = random.Random(f"{name} {SEED}")
    at_operation = [1 + number % operations for number in draw.sample(range(operations * count), count // 2)]
    points = [Point(SIGNALS[index % len(SIGNALS)], operation=at) for index, at in enumerate(at_operation)]
    return points + [
        Point(SIGNALS[index % len(SIGNALS)], seconds=draw.uniform(0, seconds)) for index in range(count - len(points))
    ]


@pytest.mark.parametrize("name", NAMES)
def test_killed_at_any_moment(goods: Goods, worker: Worker, tmp_path: Path, name: str) -> None:
    writing = writing_named(name, goods)
    folder, log = tmp_path / "killed", tmp_path / "log"
    # each in the same folder, since some results name it
    unbroken(worker, writing, folder, log, patch={"folder": str(folder), "at": 0})
    operations = int(log.read_text().rpartition("writes: ")[2])
    refilled(folder, None)
    begin = time.perf_counter()
    wanted = unbroken(worker, writing, folder, log)
    seconds = time.perf_counter() - begin
    before = refilled(tmp_path / "wanted", folder)
    problems: list[str] = []
    codes: list[int] = []
    known: set[frozenset[tuple[str, str]]] = set()  # what kills left, and a rerun has completed
    for index, point in enumerate(points_of(name, seconds, operations)):
        is_fresh = index % 2 == 0 or writing.is_new or writing.resumes
        old = contents(refilled(folder, None if is_fresh else before))
        code, text = killed(worker, writing, folder, point)
        codes.append(code)
        left = contents(folder)
        found = problem_of(point, code, text, old, wanted, left)
        is_done = writing.is_new and without_parts(left) == wanted  # the signal came too late
        state = frozenset(left.items())
        if not found and not is_done and state not in known:
            after = without_parts(unbroken(worker, writing, folder, log))
            if after != wanted:
                found = f"a rerun gives {sorted(set(after.items()) ^ set(wanted.items()))[:3]}"
            known.add(state)
        if found:
            problems.append(f"{name}, {point} of {operations} or {seconds:.3f} s: {found}")
    # pytest -rP prints it
    print(
        f"{name}: {len(codes)} kill points, {sum(code != 0 for code in codes)} ended by the signal, {len(known)} states"
    )
    assert problems == []
