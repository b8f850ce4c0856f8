"""Which part of a sample is meant by a key."""

from pathlib import Path

import pytest

from lbm_lora.errors import ImageError
from lbm_lora.shards.parts import Found, Part


def found(*names: str) -> Found:
    return Found("a.tar/000", {name: Part(Path("a.tar"), place, 1) for place, name in enumerate(names)})


def test_the_key_itself_comes_first() -> None:
    assert found("source.png", "source.jpg").pick("source.jpg").offset == 1


def test_another_extension_will_do() -> None:
    assert found("target.png", "source.webp").pick("Source.JPG").offset == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("source.png", "source.webp"), r"^source\.png and source\.webp: which one is source\.jpg\?$"),
        (("source.txt", "target.png"), r"^no source\.jpg, only source\.txt, target\.png$"),
    ],
)
def test_none_or_several_are_said(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        found(*names).pick("source.jpg")


def test_bytes_are_read_from_their_place(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"0123456789")
    assert Part(path, 3, 4).read() == b"3456"
    assert Part(path, 3, 4).read(2) == b"34"
    with pytest.raises(ImageError, match=r"a ends at byte 10, within a picture"):
        Part(path, 8, 4).read()
