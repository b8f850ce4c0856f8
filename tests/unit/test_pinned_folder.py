"""Folders that are known again."""

import gc
import os
from pathlib import Path

import pytest

from lbm_lora.pinned_folder import PinnedFolder


def test_a_folder_is_known_by_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    pinned = PinnedFolder(tmp_path / "link")
    assert not pinned.is_missing
    assert pinned.is_at(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert pinned.is_at(tmp_path / "b")
    assert not pinned.is_at(tmp_path / "a")
    (tmp_path / "a").mkdir()
    assert not pinned.is_at(tmp_path / "link")


@pytest.mark.skipif(not hasattr(os, "O_PATH"), reason="a folder can be held on Linux alone")
def test_no_other_folder_gets_its_inode_while_it_is_held(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o300)
    pinned = PinnedFolder(tmp_path / "a")
    (tmp_path / "a").rmdir()
    for number in range(50):
        (tmp_path / f"{number}").mkdir()
        assert not pinned.is_at(tmp_path / f"{number}")
    gc.collect()  # of what earlier tests have left
    before = len(list(Path("/proc/self/fd").iterdir()))
    del pinned
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before - 1


def test_a_folder_that_is_not_there_is_at_no_path(tmp_path: Path) -> None:
    pinned = PinnedFolder(tmp_path / "none")
    assert pinned.is_missing
    assert not pinned.is_at(tmp_path / "none")
    assert PinnedFolder(Path("\0")).is_missing
