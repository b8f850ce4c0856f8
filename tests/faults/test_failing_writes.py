"""A disk that is full at any write, or limits the size of files: exit code 2, one line, the old file intact."""

import errno
import os
import random
from pathlib import Path

import pytest
from faults.goods import Goods
from faults.harness import Worker, contents
from faults.test_kill_points import parts
from faults.writing import NAMES, Writing, finish, refilled, start, unbroken, writing_named

pytestmark = [pytest.mark.faults, pytest.mark.slow]

MOST = int(os.environ.get("WRITE_POINTS", "12"))
"""Points of failure per command: the first, the last, and some between; all of them with a large number."""


def problem_of(code: int, text: str, old: dict[str, str], left: dict[str, str]) -> str:
    """What is wrong after a command whose disk failed."""
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    if code not in (1, 2):
        return f"exit code {code}: {text[-600:]}"
    if len(errors) != 1 or "Traceback" in text:
        return f"not one line of error: {text[-600:]}"
    changed = [name for name, digest in old.items() if left.get(name) != digest]
    if changed:
        return f"{changed} changed"
    return f"left {parts(left)}" if parts(left) else ""


def points_of(total: int) -> list[int]:
    every = range(1, total + 1)
    if total <= MOST:
        return list(every)
    return sorted({1, 2, total - 1, total, *random.Random(0).sample(every, MOST)})


@pytest.mark.parametrize("name", NAMES)
def test_every_write_may_fail(goods: Goods, worker: Worker, tmp_path: Path, name: str) -> None:
    writing = writing_named(name, goods)
    log, folder = tmp_path / "log", tmp_path / "out"
    unbroken(worker, writing, folder, log, patch={"folder": str(tmp_path), "at": 0})
    total = int(log.read_text().rpartition("writes: ")[2])
    assert total > 2
    problems: list[str] = []
    for at in points_of(total):
        number = (errno.ENOSPC, errno.EIO)[at % 2]
        old = contents(refilled(folder, None))
        pid = start(worker, writing, folder, log, patch={"folder": str(tmp_path), "at": at, "code": number})
        found = problem_of(finish(worker, pid), log.read_text(), old, contents(folder))
        if found:
            problems.append(f"{writing.name}, {errno.errorcode[number]} at {at} of {total}: {found}")
    assert problems == []


def limits(writing: Writing) -> list[int]:
    return [0, 1, 100, 1000, 4096, *([20_000] if "infer" not in writing.name else [])]


@pytest.mark.parametrize("name", NAMES)
def test_files_may_be_limited_in_size(goods: Goods, worker: Worker, tmp_path: Path, name: str) -> None:
    """RLIMIT_FSIZE, as `ulimit -f` sets it: the operating system's own refusal, in the middle of a write."""
    writing = writing_named(name, goods)
    log, folder = tmp_path / "log", tmp_path / "out"
    wanted = unbroken(worker, writing, folder, log)
    largest = max((folder / name).stat().st_size for name in wanted if (folder / name).is_file())
    problems: list[str] = []
    for limit in (limit for limit in limits(writing) if limit < largest):
        old = contents(refilled(folder, None))
        log.write_text("")
        pid = start(worker, writing, folder, Path("/dev/null"), file_bytes=limit)
        code = finish(worker, pid)
        left = contents(folder)
        if code not in (1, 2) or parts(left) or any(left.get(name) != digest for name, digest in old.items()):
            problems.append(f"{writing.name} with at most {limit} bytes: exit code {code}, {parts(left)}")
    assert problems == []


def test_a_full_stdout_is_not_success(goods: Goods, worker: Worker, tmp_path: Path) -> None:
    for writing in (writing_named(name, goods) for name in ("inspect --report", "fuse")):
        folder, log = tmp_path / writing.name, tmp_path / "log"
        folder.mkdir()
        code = finish(worker, start(worker, writing, folder, log, to="/dev/full"))
        text = log.read_text()
        assert code == 2, text
        assert [line for line in text.splitlines() if line.startswith("error: ")] == [
            "error: stdout: No space left on device."
        ]
