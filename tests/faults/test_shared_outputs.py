"""Two processes on one output; folders that are read-only, deleted or without locks: a complete file, or exit code 2.

A process is stopped (SIGSTOP) before its n-th operation that changes the disk; meanwhile something else happens.
"""

import os
import random
import shutil
import signal
from pathlib import Path

import pytest
from faults.goods import Goods
from faults.harness import Worker, contents
from faults.test_kill_points import parts
from faults.writing import NAMES, Writing, finish, is_stopped, refilled, start, unbroken, writing_named

pytestmark = [pytest.mark.faults, pytest.mark.slow]

MOST = int(os.environ.get("STOP_POINTS", "3"))
"""Operations per command before which it is stopped."""


def counted(worker: Worker, writing: Writing, folder: Path, log: Path) -> tuple[dict[str, str], list[int]]:
    """What the command writes to a folder, and the operations to stop before."""
    wanted = unbroken(worker, writing, folder, log, patch={"folder": str(folder), "at": 0})
    total = int(log.read_text().rpartition("writes: ")[2])
    assert total > 2
    return wanted, sorted(random.Random(writing.name).sample(range(1, total + 1), min(total, MOST)))


def stopped(worker: Worker, writing: Writing, folder: Path, log: Path, at: int) -> int:
    """Start the command, and wait until it stops before an operation; returns its process id."""
    pid = start(worker, writing, folder, log, patch={"folder": str(folder), "at": at, "number": int(signal.SIGSTOP)})
    assert is_stopped(pid), log.read_text()
    return pid


def continued(worker: Worker, pid: int) -> int:
    os.kill(pid, signal.SIGCONT)
    return finish(worker, pid)


def refusal_of(code: int, text: str) -> str:
    """What is wrong with a command that may succeed or refuse; empty if nothing."""
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    if "Traceback" in text or code not in (0, 1, 2) or (code == 2 and len(errors) != 1):
        return f"exit code {code}: {text[-600:]}"
    return ""


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_on_one_output_leave_a_complete_one(
    goods: Goods, worker: Worker, tmp_path: Path, name: str
) -> None:
    writing = writing_named(name, goods)
    folder, log = tmp_path / "out", tmp_path / "log"
    wanted, points = counted(worker, writing, folder, log)
    problems: list[str] = []
    for at in points:
        refilled(folder, None)
        pid = stopped(worker, writing, folder, log, at)
        second = finish(worker, start(worker, writing, folder, tmp_path / "second"))
        first = continued(worker, pid)
        found = refusal_of(first, log.read_text()) or refusal_of(second, (tmp_path / "second").read_text())
        left = contents(folder)
        if found or 0 not in (first, second) or left != wanted:
            different = sorted(set(left.items()) ^ set(wanted.items()))
            problems.append(f"{name}, stopped at {at}: {first} and {second}, {different[:4]} {found}")
    assert problems == []


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_may_be_deleted_while_a_command_writes_to_it(
    goods: Goods, worker: Worker, tmp_path: Path, name: str
) -> None:
    writing = writing_named(name, goods)
    folder, log = tmp_path / "out", tmp_path / "log"
    _, points = counted(worker, writing, folder, log)
    problems: list[str] = []
    for at in points:
        refilled(folder, None)
        pid = stopped(worker, writing, folder, log, at)
        shutil.rmtree(folder)
        code = continued(worker, pid)
        found = refusal_of(code, log.read_text())
        left = contents(folder) if folder.exists() else {}
        if found or parts(left):
            problems.append(f"{name}, stopped at {at}: {found}, {parts(left)}")
    assert problems == []


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_may_be_read_only(goods: Goods, worker: Worker, tmp_path: Path, name: str) -> None:
    writing = writing_named(name, goods)
    folder, log = tmp_path / "out", tmp_path / "log"
    folder.mkdir(mode=0o555)
    code = finish(worker, start(worker, writing, folder, log, obeys_modes=True))
    assert (code, refusal_of(code, log.read_text())) == (2, "")
    assert "ermission denied" in log.read_text()
    assert contents(folder) == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_may_have_no_locks(goods: Goods, worker: Worker, tmp_path: Path, name: str) -> None:
    writing = writing_named(name, goods)
    folder, log = tmp_path / "out", tmp_path / "log"
    wanted = unbroken(worker, writing, folder, log)
    for before in (None, tmp_path / "before"):
        if before is not None and not writing.is_new:
            shutil.copytree(folder, before)
        refilled(folder, None if writing.is_new else before)
        assert unbroken(worker, writing, folder, log, has_no_locks=True) == wanted
