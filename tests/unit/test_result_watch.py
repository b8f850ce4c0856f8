"""Results whose folder is moved away, or whose names are one to the disk."""

import os
from pathlib import Path

import pytest

from lbm_lora.errors import OutputError
from lbm_lora.result_watch import ResultWatch


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
