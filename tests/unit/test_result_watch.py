"""Results whose folder is moved away, or whose names are one to the disk."""

import os
import shutil
from pathlib import Path

import pytest

from lbm_lora import atomic
from lbm_lora.atomic import write_text
from lbm_lora.errors import OutputError
from lbm_lora.result_watch import OwnFile, ResultWatch


def test_a_folder_that_is_another_one_later(tmp_path: Path) -> None:
    watch, folder = ResultWatch(), tmp_path / "out"
    watch.before(folder / "a")  # the folder need not exist yet
    folder.mkdir()
    watch.after(folder / "a")
    watch.before(folder / "b")
    watch.after(folder / "b")
    folder.rename(tmp_path / "old")
    with pytest.raises(OutputError, match=r"out was moved while results were written to it\. The"):
        watch.before(folder / "c")
    folder.mkdir()
    with pytest.raises(OutputError, match=r"out was moved while .*, and another one is there now\. "):
        watch.before(folder / "c")
    with pytest.raises(OutputError, match=r"out was moved while .*, and another one is there now\. "):
        watch.after(folder / "c")


@pytest.mark.skipif(not hasattr(os, "O_PATH"), reason="a folder can be held on Linux alone")
def test_a_folder_is_held_so_that_no_other_one_gets_its_inode(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir(mode=0o300)
    with ResultWatch() as watch:
        watch.after(folder / "a")
        assert folder.stat().st_ino in open_inodes()
    assert folder.stat().st_ino not in open_inodes()


def open_inodes() -> set[int]:
    """The inodes that this process holds open."""
    return {path.stat().st_ino for path in Path("/proc/self/fd").iterdir() if path.exists()}


def test_two_names_of_one_file(tmp_path: Path) -> None:
    """As `IMG.png` and `img.png` are on a disk that does not tell cases apart: here they are hard links."""
    watch = ResultWatch()
    first, second = tmp_path / "IMG.png", tmp_path / "img.png"
    first.touch()
    watch.after(first)
    watch.before(first)
    second.hardlink_to(first)
    with pytest.raises(OutputError, match=r"IMG\.png and .*img\.png are one file: the disk does not tell their names"):
        watch.before(second)


def test_a_freed_inode_is_no_second_name(tmp_path: Path) -> None:
    """Another command has replaced the first file, and a new one has its inode: here it was moved."""
    watch = ResultWatch()
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    first.touch()
    watch.after(first)
    first.rename(second)
    first.touch()
    watch.before(second)


def test_a_file_that_is_another_runs_by_now(tmp_path: Path) -> None:
    own = OwnFile(tmp_path / "a")
    own.remove()
    own.check()
    own.path.write_text("this run's")
    own.note()
    own.check()
    (tmp_path / "b").write_text("another run's")
    (tmp_path / "b").rename(own.path)
    with pytest.raises(OutputError, match=r"a is another run's by now, and was kept\."):
        own.check()
    own.remove()
    assert own.path.read_text() == "another run's"
    own.note()
    own.path.chmod(0o444)
    own.remove()
    assert own.path.exists(), "somebody wants to keep it"
    own.path.chmod(0o644)
    own.remove()
    assert not own.path.exists()


def test_a_file_that_has_another_inode_at_each_look(tmp_path: Path) -> None:
    """As on some FUSE disks: here it is a copy with the same time."""
    own, other, another = OwnFile(tmp_path / "a"), tmp_path / "b", tmp_path / "c"
    own.path.write_text("this run's")
    another.write_text("this run/s")
    own.note()
    shutil.copy2(own.path, other)
    other.replace(own.path)
    own.check()
    assert own.is_here()
    time = own.path.stat().st_mtime_ns
    os.utime(another, ns=(time, time))
    another.replace(own.path)
    assert not own.is_here()
    with pytest.raises(OutputError, match="is another run's by now"):
        own.check()


def test_another_runs_file_that_comes_right_after_a_write_stays(tmp_path: Path) -> None:
    own, other = OwnFile(tmp_path / "a"), tmp_path / "b"
    other.write_text("another run's")
    with own.written():
        write_text(own.path, "first")
        other.replace(own.path)
    with pytest.raises(OutputError, match="is another run's by now"), own.written():
        pytest.fail("it is not written again")
    own.remove()
    assert own.path.read_text() == "another run's"


def test_another_runs_file_that_comes_during_a_write_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, sync = OwnFile(tmp_path / "a"), atomic.sync
    (tmp_path / "b").write_text("another run's")
    for text in ("first", "second"):
        with own.written():
            write_text(own.path, text)
        os.utime(own.path)  # as some do to keep files on scratch disks

    def move(path: Path) -> None:
        sync(path)
        (tmp_path / "b").replace(own.path)

    monkeypatch.setattr(atomic, "sync", move)
    refusal = pytest.raises(OutputError, match=r"a appeared while this command ran, and this command did not write it")
    with refusal, own.written():
        write_text(own.path, "third")
    assert own.path.read_text() == "another run's"
    monkeypatch.undo()
    write_text(own.path, "a later write of somebody else")


def test_a_file_of_the_same_inode_is_another_one(tmp_path: Path) -> None:
    """Systems give the inode of a removed file to the next one: here it is the same one, written anew."""
    own = OwnFile(tmp_path / "a")
    own.path.write_text("this run's")
    own.note()
    own.path.write_text("another run's")
    with pytest.raises(OutputError, match=r"a is another run's by now, and was kept\."):
        own.check()
