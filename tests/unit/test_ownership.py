"""The mark of files that lbm-lora wrote."""

from pathlib import Path

import pytest

from lbm_lora.ownership import MARK, is_ours


@pytest.mark.parametrize("place", [0, 2**17])
def test_the_mark_is_looked_for_at_both_ends(tmp_path: Path, place: int) -> None:
    content = bytearray(2**17 + len(MARK))
    content[place : place + len(MARK)] = MARK.encode()
    (tmp_path / "a").write_bytes(content)
    assert is_ours(tmp_path / "a")
    (tmp_path / "b").write_bytes(bytes(2**18))
    assert not is_ours(tmp_path / "b")
    assert not is_ours(tmp_path / "none")


def test_a_mark_of_one_kind_is_told_from_others(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text(f"{MARK}: side by side")
    assert is_ours(path, "side by side")
    assert not is_ours(path, "a result")
