"""The marks of files that lbm-lora wrote, and of their kinds."""

import tarfile
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest

from lbm_lora.ownership import (
    BASE,
    FUSED,
    LIST_MARK,
    MARK,
    MARK_KEY,
    MARK_LINE,
    RESULT,
    SIDE_BY_SIDE,
    TRAINED,
    is_any_kind,
    is_base,
    is_fused,
    is_lora,
    is_ours,
    is_statistics,
    is_trained,
    of_kind,
)

KINDS = (is_lora, is_statistics, is_base, is_fused, is_trained)


@pytest.mark.parametrize("place", [0, 2**17])
def test_the_mark_is_looked_for_at_both_ends(tmp_path: Path, place: int) -> None:
    content = bytearray(2**17 + len(RESULT) + 2)
    content[place + 1 : place + 1 + len(RESULT)] = RESULT.encode()
    (tmp_path / "a").write_bytes(content)
    assert is_ours(tmp_path / "a", RESULT)
    assert is_any_kind(tmp_path / "a")
    (tmp_path / "b").write_bytes(bytes(2**18))
    assert not is_ours(tmp_path / "b", RESULT)
    assert not is_any_kind(tmp_path / "b")
    assert not is_ours(tmp_path / "none", RESULT)


def test_an_archive_of_results_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text(f"\0{RESULT}\0")
    with tarfile.open(tmp_path / "b.png", "w") as archive:
        archive.add(tmp_path / "a.png", "a.png")
    assert of_kind(RESULT)(tmp_path / "a.png")
    assert not of_kind(RESULT)(tmp_path / "b.png")


def test_a_mark_of_one_kind_is_told_from_others(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text(f"\0{SIDE_BY_SIDE}\0")
    assert is_ours(path, RESULT, SIDE_BY_SIDE)
    assert not of_kind(RESULT)(path)
    for caption in (
        f"\0a caption that says {SIDE_BY_SIDE} once\0",
        f"\0it is {SIDE_BY_SIDE}\0",
        f"\0{SIDE_BY_SIDE}, too\0",
    ):
        path.write_text(caption)
        assert not of_kind(SIDE_BY_SIDE)(path)


@pytest.mark.parametrize(
    ("content", "mark", "ours"),
    [
        (f"{MARK_LINE}a: 1\n", MARK_LINE, True),
        (f"a: 1\r\n# {MARK}\r\nb: 2\r\n", MARK_LINE, True),
        (f"a: 1\n# {MARK}", MARK_LINE, True),
        (f"a: 1  # {MARK}\n", MARK_LINE, False),
        (f"# {MARK}, or so\n", MARK_LINE, False),
        (f"# Copy names ({MARK}).\r\nunet.a\n", LIST_MARK, True),
        (f"It was copied ({MARK}). Then\n", LIST_MARK, False),
    ],
)
def test_the_mark_of_a_text_is_a_line_or_its_end(tmp_path: Path, content: str, mark: str, ours: bool) -> None:
    (tmp_path / "a").write_bytes(content.encode())
    assert is_ours(tmp_path / "a", mark) == ours


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.safetensors", '{"__metadata__":{"lbm_lora_format":"1"}}', is_lora),
        ("a.safetensors", '{"__metadata__":{"lbm_lora_export":"kohya 1"}}', is_lora),
        ("a.safetensors", f'{{"__metadata__":{{"{MARK_KEY}":"LoRA"}}}}', is_lora),
        ("a.safetensors", '{"__metadata__":{"lbm_lora_statistics":"2"}}', is_statistics),
        ("a.safetensors", f'{{"__metadata__":{{"{MARK_KEY}":"{BASE}"}}}}', is_base),
        ("a.safetensors", f'{{"__metadata__":{{"{MARK_KEY}":"{FUSED}"}}}}', is_fused),
        ("a.safetensors", f'{{"__metadata__":{{"{MARK_KEY}":"{TRAINED}","lbm_lora_training":"{{}}"}}}}', is_trained),
        ("a.safetensors", f'{{"__metadata__":{{"notes":"from a base ({MARK}: {BASE})"}}}}', None),
        ("a.safetensors", '{"__metadata__":{"format":"pt"}}', None),
    ],
)
def test_loras_statistics_and_checkpoints_are_told_apart(
    tmp_path: Path, name: str, content: str, kind: Callable[[Path], bool] | None
) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert [one for one in KINDS if one(path)] == ([kind] if kind else [])
    assert is_any_kind(path) == (kind is not None or MARK in content)


@pytest.mark.parametrize(("kind", "one"), [(BASE, is_base), (FUSED, is_fused), (TRAINED, is_trained)])
def test_a_ckpt_has_an_entry_of_its_kind(tmp_path: Path, kind: str, one: Callable[[Path], bool]) -> None:
    with ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", f"of somebody else, from {MARK}: {kind}")
    assert not one(tmp_path / "a.ckpt")
    with ZipFile(tmp_path / "a.ckpt", "a") as archive:
        archive.writestr(f"archive/{MARK}: {kind}", "")
    assert [is_kind for is_kind in KINDS if is_kind(tmp_path / "a.ckpt")] == [one]


@pytest.mark.parametrize(
    "content",
    [
        '{"__metadata__":{"ss_output_name":"lbm_lora_v3"}}',  # a LoRA of sd-scripts
        '{"__metadata__":{"workflow":"{\\"lora_name\\": \\"lbm_lora_file\\"}"}}',
        '\0tEXt{"lora_name": "lbm_lora_relight.safetensors"}',  # an image of ComfyUI
        'wandb_project: "lbm_lora_relight"\n',
    ],
)
def test_a_file_that_mentions_us_is_somebody_elses(tmp_path: Path, content: str) -> None:
    (tmp_path / "a").write_text(content)
    assert not any(kind(tmp_path / "a") for kind in (*KINDS, is_any_kind, of_kind(RESULT), of_kind(MARK_LINE)))


def test_a_file_of_no_bytes_is_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert not any(kind(tmp_path / "a") for kind in (*KINDS, of_kind(RESULT), of_kind(MARK_LINE), is_any_kind))
