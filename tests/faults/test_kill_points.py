"""Killed at any moment, a command leaves the old file or the new one, and a rerun clears up and succeeds."""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.goods import Goods, write_goods
from faults.harness import Worker, contents
from faults.writing import COMMANDS, Writing, finish, refilled, start, unbroken, writing_commands

pytestmark = [pytest.mark.faults, pytest.mark.slow]

POINTS = int(os.environ.get("KILL_POINTS", "50"))
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    found = Worker()
    yield found
    found.close()


@pytest.fixture(scope="module")
def goods(tmp_path_factory: pytest.TempPathFactory) -> Goods:
    other = Worker()
    try:
        return write_goods(tmp_path_factory.mktemp("goods") / "in", other)
    finally:
        other.close()


def same(found: dict[str, str], wanted: dict[str, str]) -> bool:
    """Whether two folders hold the same results; the logs of a training and its state hold times."""
    return {k: v for k, v in found.items() if not _varies(k)} == {k: v for k, v in wanted.items() if not _varies(k)}


def _varies(name: str) -> bool:
    return "/logs" in name or name.endswith((".json", "resume.pt", "config.yaml", ".html"))


def parts(found: dict[str, str]) -> list[str]:
    return [name for name in found if name.endswith(".part")]


def problem_of(
    worker: Worker, writing: Writing, folder: Path, before: Path | None, moment: float, number: signal.Signals
) -> str:
    """Kill the command after some seconds, and run it again; returns what is wrong then."""
    log = folder.with_suffix(".log")
    old = contents(refilled(folder, before))
    pid = start(worker, writing, folder, log)
    time.sleep(moment)
    os.kill(pid, number)
    code = finish(worker, pid)
    left = contents(folder)
    text = log.read_text()
    if code == 3 or ("Traceback" in text and code not in (70,)):
        return f"exit code {code}: {text[-300:]}"
    new = contents(before) if before else {}
    damaged = [name for name, digest in old.items() if digest != left.get(name) and new.get(name) != left.get(name)]
    if damaged:
        return f"{damaged} is neither old nor new"
    if number is not signal.SIGKILL and parts(left):
        return f"left {parts(left)}"
    return ""


@pytest.mark.parametrize("index", range(COMMANDS))
def test_killed_at_any_moment(goods: Goods, worker: Worker, tmp_path: Path, index: int) -> None:
    writing = writing_commands(goods)[index]
    start_of = time.perf_counter()
    wanted = unbroken(worker, writing, tmp_path / "wanted", tmp_path / "log")
    unbroken(worker, writing, tmp_path / "again", tmp_path / "log")
    seconds = (time.perf_counter() - start_of) / 2
    before = None if writing.is_new else tmp_path / "wanted"
    draw = random.Random(index)
    problems: list[str] = []
    for point in range(-(-POINTS // COMMANDS)):
        number, moment = SIGNALS[point % 3], draw.uniform(0, seconds)
        is_fresh = point % 2 or before is None or writing.resumes
        folder = tmp_path / "killed"
        found = problem_of(worker, writing, folder, None if is_fresh else before, moment, number)
        is_done = writing.is_new and same(contents(folder), wanted)  # the signal came too late
        if not found and not is_done:
            after = unbroken(worker, writing, folder, tmp_path / "log")
            if not same(after, wanted):
                found = f"a rerun gives {sorted(set(after.items()) ^ set(wanted.items()))[:3]}"
            elif parts(after):
                found = f"a rerun leaves {parts(after)}"
        if found:
            problems.append(f"{writing.name}, {number.name} after {moment:.3f} of {seconds:.3f} s: {found}")
    assert problems == []
