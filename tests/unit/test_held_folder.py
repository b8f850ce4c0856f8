"""One writer holds a folder."""

from pathlib import Path

import pytest

from lbm_lora import held_folder as held
from lbm_lora.held_folder import held_folder


def test_a_folder_is_held_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "PATIENCE", 0.0)
    folder = tmp_path / "deep" / "run"
    with held_folder(folder) as first, held_folder(folder) as second:
        assert first
        assert second is None
    with held_folder(folder) as third:
        assert third
    assert list(folder.iterdir()) == []


def test_the_folder_of_another_writer_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is moved away, and another run starts in a new one of its name."""
    monkeypatch.setattr(held, "PATIENCE", 0.0)
    folder = tmp_path / "run"
    with held_folder(folder) as first:
        assert first
        assert first.keep()
        folder.rename(tmp_path / "old")
        with held_folder(folder) as second:
            assert second
            assert second.keep()
            assert not first.keep()
        folder.rmdir()
        assert first.keep()  # nobody has one: it is made again
        with held_folder(folder) as third:
            assert third is None
