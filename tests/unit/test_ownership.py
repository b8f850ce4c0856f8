"""The marks of files that lbm-lora wrote, and of their kinds."""

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from PIL import Image

from lbm_lora.errors import OutputError
from lbm_lora.file_plan import FilePlan
from lbm_lora.imaging.image_file import write_image
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
    is_spare_lora,
    is_statistics,
    is_trained,
    of_kind,
)

DESCRIPTION, SOFTWARE, ARTIST = 0x10E, 0x131, 0x13B
KINDS = (is_lora, is_statistics, is_base, is_fused, is_trained)


@pytest.mark.parametrize("place", [0, 2**17])
def test_the_mark_is_looked_for_at_both_ends(tmp_path: Path, place: int) -> None:
    content = bytearray(2**17 + len(MARK_LINE) + 2)
    content[place : place + len(MARK_LINE)] = MARK_LINE.encode()
    (tmp_path / "a").write_bytes(content)
    assert is_ours(tmp_path / "a", MARK_LINE) == (place == 0), "a line of its own"
    content[place - 1 if place else 0] = ord("\n" if place else "#")
    (tmp_path / "a").write_bytes(content)
    assert is_ours(tmp_path / "a", MARK_LINE)
    assert is_any_kind(tmp_path / "a")
    (tmp_path / "b").write_bytes(bytes(2**18))
    assert not is_ours(tmp_path / "b", MARK_LINE)
    assert not is_any_kind(tmp_path / "b")
    assert not is_ours(tmp_path / "none", MARK_LINE)


def test_the_mark_of_an_image_is_at_either_end(tmp_path: Path) -> None:
    """PNG and JPEG have their EXIF data at the beginning, WebP at the end, TIFF where its writer likes."""
    exif = Image.Exif()
    exif[SOFTWARE] = RESULT
    block = exif.tobytes()
    for name, content in {"a": block + bytes(2**18), "b": bytes(2**18) + block}.items():
        (tmp_path / name).write_bytes(content)
        assert is_ours(tmp_path / name, RESULT)
        assert not is_ours(tmp_path / name, SIDE_BY_SIDE)
        (tmp_path / name).write_bytes(content[: len(block) // 2])
        assert not is_ours(tmp_path / name, RESULT)
    (tmp_path / "c").write_bytes(b"II*\0" + b"\xff" * 12 + b"MM\0*")
    assert not is_ours(tmp_path / "c", RESULT)


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tiff", "gif", "bmp"])
@pytest.mark.filterwarnings("ignore:.*a GIF holds 256 colours")
def test_a_caption_is_no_mark(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    image = Image.effect_noise((300, 300), 90).convert("RGB")
    write_image(image, path, mark=RESULT)
    assert is_ours(path, SIDE_BY_SIDE, RESULT)
    for tag in (DESCRIPTION, ARTIST, SOFTWARE):
        for text in (f"it is {RESULT}", f"{RESULT}, too", *([RESULT] if tag != SOFTWARE else [])):
            exif = Image.Exif()
            exif[tag] = text
            options: dict[str, Any] = {"comment": text} if extension == "gif" else {"exif": exif}
            if extension != "gif" or text != RESULT:
                image.save(path, **options)
                assert not is_ours(path, RESULT)


def test_an_archive_of_results_is_none(tmp_path: Path) -> None:
    write_image(Image.new("RGB", (4, 4)), tmp_path / "a.png", mark=RESULT)
    with tarfile.open(tmp_path / "b.png", "w") as archive:
        archive.add(tmp_path / "a.png", "a.png")
    assert of_kind(RESULT)(tmp_path / "a.png")
    assert not of_kind(RESULT)(tmp_path / "b.png")


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


@pytest.mark.parametrize("name", ["a.safetensors", "a.safetensors.bak", "a.SAFETENSORS", "a"])
def test_a_lora_that_a_training_run_has_saved_is_not_replaced_by_another_command(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('{"__metadata__":{"lbm_lora_format":"1"}}')
    assert is_spare_lora(path)
    header = f'{{"__metadata__":{{"lbm_lora_format":"1","x":"{"x" * 100_000}","lbm_lora_step":"100 0123"}}}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(100_000))
    assert is_lora(path)
    assert not is_spare_lora(path)
    plan = FilePlan()
    plan.writes(path, ours=is_spare_lora)
    with pytest.raises(OutputError) as caught:
        plan.check()
    assert str(caught.value).startswith(f"{path} exists, and a training run has saved it. Choose another path, or use")


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
