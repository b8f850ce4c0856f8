"""Temporary files, and machines without a place for them."""

import tempfile
from pathlib import Path
from typing import NoReturn

import pytest

from lbm_lora.errors import OutputError
from lbm_lora.temp_folder import temp_folder, temp_root


def test_a_folder_is_there_until_the_end() -> None:
    with temp_folder() as folder:
        (folder / "a").write_text("a")
        assert folder.parent == temp_root()
    assert not folder.exists()


def test_no_place_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> NoReturn:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with pytest.raises(OutputError, match=r"^no folder for temporary files .* Set TMPDIR to a writable folder\.$"):
        temp_root()


def test_a_place_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with (
        pytest.raises(OutputError, match=r"gone, the folder of temporary files, cannot be written to: No such file"),
        temp_folder(),
    ):
        pass
