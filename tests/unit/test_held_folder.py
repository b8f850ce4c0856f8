"""One writer holds a folder."""

from pathlib import Path

import pytest

from lbm_lora import held_folder as held
from lbm_lora.held_folder import held_folder


def test_a_folder_is_held_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "PATIENCE", 0.0)
    folder = tmp_path / "deep" / "run"
    with held_folder(folder) as first, held_folder(folder) as second:
        assert (first, second) == (True, False)
    with held_folder(folder) as third:
        assert third
    assert list(folder.iterdir()) == []
