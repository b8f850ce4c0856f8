"""Which part of a sample is meant by a key, and how many samples that cannot be used are too many."""

from pathlib import Path

import pytest

from lbm_lora.errors import ImageError
from lbm_lora.shards.samples import Found, Part, Skipped, complaint, problem_of_name

TWO = [Skipped("a.tar/001", "no source.jpg"), Skipped("a.tar/002", "cannot be decoded")]


def found(*names: str) -> Found:
    return Found("a.tar/000", {name: Part(Path("a.tar"), place, 1) for place, name in enumerate(names)})


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
    with pytest.raises(ImageError, match=r"a ends at byte 10, within an image"):
        Part(path, 8, 4).read()


@pytest.mark.parametrize(("total", "limit"), [(39, 0.05), (2, 1.0)])
def test_too_many_or_all(total: int, limit: float) -> None:
    assert complaint("a.tar", TWO, total, limit)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("../../000", "its name leads out of its folder"),
        ("a/../../000", "its name leads out of its folder"),
        ("/etc/000", "its name leads out of its folder"),
        ("..\\000", "its name leads out of its folder"),
        ("C:\\000", "its name leads out of its folder"),
        ("\x1b[31m000", "its name holds control characters, or is not UTF-8"),
        ("\u2029000", "its name holds control characters, or is not UTF-8"),
        ("\udcff000", "its name holds control characters, or is not UTF-8"),
        ("a.b/c d/äöü 家族👩‍👧", ""),
        ("a:b", ""),
        ("...", ""),
    ],
)
def test_names_that_would_be_unpacked_elsewhere(name: str, problem: str) -> None:
    assert problem_of_name(name) == problem
