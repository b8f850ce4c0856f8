"""Private folders are their writer's alone, and only those of dead writers are removed."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from stat import S_IMODE, S_IRUSR, S_IRWXU, S_ISGID
from typing import Any

import pytest

from lbm_lora.private_folder import (
    NOTE,
    NOTE_TEXT,
    is_leftover,
    output_of,
    private_folder,
    remove_leftover,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_holds_a_note_and_is_gone_at_the_end(tmp_path: Path) -> None:
    with private_folder(tmp_path / "a.bin") as folder:
        assert folder.path == tmp_path / ".a.bin.0.part"
        assert (folder.path / NOTE).read_bytes() == NOTE_TEXT
        (folder.path / "half").write_text("half")
        with private_folder(tmp_path / "a.bin") as other:
            assert other.path == tmp_path / ".a.bin.1.part"
        assert not remove_leftover(folder.path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("content", [{}, {NOTE: b""}, {NOTE: NOTE_TEXT, "half": b"half"}])
def test_a_leftover_is_removed(tmp_path: Path, content: dict[str, bytes]) -> None:
    left = tmp_path / ".a.bin.0.part"
    left.mkdir()
    for name, data in content.items():
        (left / name).write_bytes(data)
    with private_folder(tmp_path / "a.bin") as folder:
        assert names(folder.path) == [NOTE]
    assert names(tmp_path) == []


@pytest.mark.parametrize("content", [{"mine": b"1"}, {NOTE: b"", "mine": b"1"}, {NOTE: b"mine"}, {"deep/mine": b"1"}])
def test_what_only_has_the_name_of_a_leftover_stays(tmp_path: Path, content: dict[str, bytes]) -> None:
    foreign = tmp_path / ".a.bin.0.part"
    for name, data in content.items():
        (foreign / name).parent.mkdir(parents=True, exist_ok=True)
        (foreign / name).write_bytes(data)
    assert not remove_leftover(foreign)
    with private_folder(tmp_path / "a.bin") as folder:
        assert folder.path.name == ".a.bin.1.part"
    assert {name: (foreign / name).read_bytes() for name in content} == content


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127, "x" * 101])
def test_every_name_that_a_disk_takes_has_one(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with private_folder(path) as folder, private_folder(path.with_name(f"{name[:-1]}b")) as other:
        assert folder.path.name.endswith(".0.part")
        assert other.path.name.endswith(".0.part")  # not a second one of the first
        shutil.copytree(folder.path, tmp_path / "kept")
    (tmp_path / "kept").rename(folder.path)
    with private_folder(path) as again:
        assert again.path == folder.path
    assert names(tmp_path) == []


def test_files_and_links_of_a_leftovers_name_stay(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / ".a.bin.0.part").write_bytes(NOTE_TEXT)
    (tmp_path / ".a.bin.1.part").symlink_to("kept")
    (tmp_path / ".a.bin.2.part").symlink_to("nothing")
    with private_folder(tmp_path / "a.bin") as folder:
        assert folder.path.name == ".a.bin.3.part"
    assert names(tmp_path) == [".a.bin.0.part", ".a.bin.1.part", ".a.bin.2.part", "kept"]


@pytest.fixture
def umask() -> Iterator[Callable[[int], object]]:
    """Sets the umask for a test."""
    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o777, 0o400, 0o222])
def test_the_umask_does_not_close_it_to_its_writer(tmp_path: Path, umask: Callable[[int], object], mask: int) -> None:
    umask(mask)
    with private_folder(tmp_path / "a.bin") as folder:
        assert folder.path.stat().st_mode & S_IRWXU == S_IRWXU
        assert (folder.path / NOTE).stat().st_mode & S_IRUSR
        (folder.path / "a.bin").touch()
        assert S_IMODE((folder.path / "a.bin").stat().st_mode) == 0o666 & ~mask
        others = S_IMODE(folder.path.stat().st_mode) & ~S_IRWXU
        assert others == 0o077 & ~mask


def test_the_group_of_a_folder_goes_on_to_new_files(tmp_path: Path, umask: Callable[[int], object]) -> None:
    tmp_path.chmod(0o2775)
    umask(0o777)
    with private_folder(tmp_path / "a.bin") as folder:
        assert folder.path.stat().st_mode & S_ISGID


def closed(monkeypatch: pytest.MonkeyPatch, folder: Path, mode: int) -> None:
    """Make a folder that cannot be opened, as it is for a user who is not root."""
    folder.mkdir()
    folder.chmod(mode)
    open_ = os.open

    def refused(path: Path, *arguments: Any, **options: Any) -> int:
        if path == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open_(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refused)


def test_a_leftover_of_mode_0_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / ".a.bin.0.part"
    closed(monkeypatch, left, 0)
    assert remove_leftover(left)
    assert names(tmp_path) == []


def test_a_closed_folder_stays_if_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, theirs = tmp_path / ".a.bin.0.part", tmp_path / ".a.bin.1.part"
    closed(monkeypatch, left, 0)
    (left / "mine").write_text("1")
    closed(monkeypatch, theirs, 0o700)
    with private_folder(tmp_path / "a.bin") as folder:
        assert folder.path.name == ".a.bin.2.part"
    assert names(tmp_path) == [left.name, theirs.name]


@pytest.mark.parametrize(
    ("module", "name"),
    [(os, "open"), (fcntl, "flock"), (Path, "write_bytes"), (Path, "chmod"), (shutil, "rmtree")],
)
def test_an_interrupt_at_any_step_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: Callable[[int], object], module: object, name: str
) -> None:
    umask(0o777)
    given = getattr(module, name)

    def interrupted(*arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(module, name, given)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, name, interrupted)
    with pytest.raises(KeyboardInterrupt), private_folder(tmp_path / "a.bin"):
        pass
    assert names(tmp_path) == []


def test_what_a_killed_writer_linked_is_not_emptied(tmp_path: Path) -> None:
    """A file in a leftover may be another name of a file that matters."""
    (tmp_path / "kept.bin").write_bytes(b"kept")
    left = tmp_path / ".a.bin.0.part"
    left.mkdir()
    (left / NOTE).write_bytes(NOTE_TEXT)
    (left / "a.bin").hardlink_to(tmp_path / "kept.bin")
    assert remove_leftover(left)
    assert (tmp_path / "kept.bin").read_bytes() == b"kept"


@pytest.mark.parametrize("content", [b"a log", NOTE_TEXT])
def test_a_file_with_the_notes_name_makes_no_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    (tmp_path / NOTE).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    for path in (Path("a.txt"), tmp_path / "a.txt"):
        assert output_of(path) == path
        with private_folder(path) as folder:
            assert output_of(folder.path / "a.txt") == path


def test_the_folder_of_another_writer_of_the_same_name_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with ExitStack() as stack:
        with private_folder(out / "a.bin") as folder:
            assert folder.is_here()
            out.rename(tmp_path / "old")
            out.mkdir()
            other = stack.enter_context(private_folder(out / "a.bin"))
            assert other.path == folder.path
            assert not folder.is_here()
        assert other.is_here()
        assert names(other.path) == [NOTE]
    assert names(out) == []
    assert remove_leftover(tmp_path / "old" / ".a.bin.0.part")


def test_what_is_in_a_leftover(tmp_path: Path) -> None:
    with private_folder(tmp_path / "a.bin") as folder:
        for inside in ("half", "new/half", ".a.bin"):
            assert is_leftover(folder.path / inside)
    assert not is_leftover(tmp_path / "half")
    assert not is_leftover(tmp_path / ".a.bin.0.part" / "half"), "it has no note"
