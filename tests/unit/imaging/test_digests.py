"""Images by their pixels, and sets of them that can be read."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lbm_lora.errors import ImageError
from lbm_lora.imaging.digests import PACKED_MOST, digests_of, packed, unpacked


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, ...]:
    paths = tuple(tmp_path / f"{index}.png" for index in range(3))
    for index, path in enumerate(paths):
        noise = np.random.default_rng(index).integers(0, 256, (8, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    return paths


def test_digests_are_of_pixels_sizes_and_order(images: tuple[Path, ...], tmp_path: Path) -> None:
    found = digests_of(images)
    assert (len(found.together), [len(each) for each in found.each]) == (32, [12, 12, 12])
    assert len(set(found.each)) == 3
    Image.open(images[0]).save(tmp_path / "same.bmp")
    assert digests_of([tmp_path / "same.bmp", *images[1:]]) == found
    turned = digests_of(images[::-1])
    assert turned.together != found.together
    assert turned.each == found.each[::-1]
    flat = Image.open(images[1])  # the same bytes as an image of another shape
    Image.frombytes("RGB", (flat.height, flat.width), flat.tobytes()).save(tmp_path / "turned.png")
    assert digests_of([tmp_path / "turned.png"]) != digests_of([images[1]])


def test_all_that_cannot_be_read_are_named_at_once(images: tuple[Path, ...], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"broken\.png is not an image in a supported format \(PNG.*\)\.$"):
        digests_of([images[0], tmp_path / "broken.png"])
    (tmp_path / "cut.png").write_bytes(images[1].read_bytes()[:100])
    said = r"^2 of 5 images cannot be read: broken\.png, cut\.png\. Repair or remove them\. The first: .*broken\.png is"
    with pytest.raises(ImageError, match=said):
        digests_of([images[0], tmp_path / "broken.png", images[1], tmp_path / "cut.png", images[2]])


def test_packed_digests_come_back_within_bounds(images: tuple[Path, ...]) -> None:
    each = digests_of(images).each
    assert unpacked(packed(each)) == set(each)
    assert len(unpacked(packed(f"{number:012x}" for number in range(10_000)))) == PACKED_MOST
    assert unpacked(None) == unpacked(["a"]) == frozenset()
