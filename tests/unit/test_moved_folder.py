"""Folders that are moved away between two writes."""

from pathlib import Path

import pytest

from lbm_lora.errors import OutputError
from lbm_lora.moved_folder import FolderWatch


def test_a_folder_that_is_another_one_later(tmp_path: Path) -> None:
    watch, folder = FolderWatch(), tmp_path / "out"
    watch.check(folder)  # it need not exist yet
    folder.mkdir()
    watch.check(folder)
    watch.check(folder)
    folder.rename(tmp_path / "old")
    with pytest.raises(OutputError, match=r"out is gone: it was moved while results were written to it"):
        watch.check(folder)
    folder.mkdir()
    with pytest.raises(OutputError, match=r"out is another folder now"):
        watch.check(folder)
