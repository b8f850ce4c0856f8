"""The mark of files that lbm-lora wrote."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lbm_lora.ownership import MARK, MARK_KEY, is_checkpoint, is_lora, is_marked, is_ours, is_statistics


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


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.safetensors", '{"__metadata__":{"lbm_lora_format":"1"}}', is_lora),
        ("a.safetensors", '{"__metadata__":{"lbm_lora_export":"kohya 1"}}', is_lora),
        ("a.safetensors", '{"__metadata__":{"lbm_lora_statistics":"2"}}', is_statistics),
        ("a.safetensors", f'{{"__metadata__":{{"{MARK_KEY}":"base"}}}}', is_checkpoint),
        ("a.safetensors", f'{{"__metadata__":{{"{MARK_KEY}":"fused checkpoint"}}}}', is_checkpoint),
        ("a.ckpt", f"archive/{MARK}\0", is_checkpoint),
        ("a.safetensors", '{"__metadata__":{"format":"pt"}}', None),
    ],
)
def test_a_lora_statistics_and_a_checkpoint_are_told_apart(
    tmp_path: Path, name: str, content: str, kind: Callable[[Path], bool] | None
) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert [one for one in (is_lora, is_statistics, is_checkpoint) if one(path)] == ([kind] if kind else [])


def test_a_file_of_no_bytes_is_of_any_kind(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert all(kind(tmp_path / "a") for kind in (is_ours, is_lora, is_statistics, is_checkpoint))
    assert not is_marked(tmp_path / "a")
