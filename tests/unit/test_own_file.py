"""A run's own file, in whose place another run's may come."""

import os
import shutil
from pathlib import Path

import pytest

from lbm_lora import atomic
from lbm_lora.atomic import write_text
from lbm_lora.errors import OutputError
from lbm_lora.own_file import OwnFile


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
