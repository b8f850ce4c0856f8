"""Masks: what they are in a file, and how they fit an image."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lbm_lora.errors import ImageError
from lbm_lora.imaging.masks import find_masks, read_mask

SOFT = np.array([[0, 0, 64, 128, 192, 255, 255, 255]] * 4, dtype=np.uint8)


def test_alpha_is_the_mask_where_it_says_something(tmp_path: Path) -> None:
    cut_out = Image.new("RGBA", (8, 4), (255, 255, 255, 255))
    cut_out.putalpha(Image.fromarray(SOFT))
    cut_out.save(tmp_path / "m.png")
    assert np.array_equal(np.asarray(read_mask(tmp_path / "m.png", (8, 4))), SOFT)
    opaque = Image.fromarray(SOFT).convert("RGBA")
    opaque.save(tmp_path / "o.png")
    assert np.array_equal(np.asarray(read_mask(tmp_path / "o.png", (8, 4))), SOFT)


def test_a_mask_of_another_shape_is_refused(tmp_path: Path) -> None:
    Image.new("L", (100, 100), 255).save(tmp_path / "m.png")
    with pytest.raises(ImageError, match=r"m\.png is 100x100, but its image 200x100: the shapes differ\."):
        read_mask(tmp_path / "m.png", (200, 100))
    assert read_mask(tmp_path / "m.png", (333, 334)).size == (333, 334)


@pytest.mark.parametrize("brightest", [0, 1])
def test_a_black_mask_is_refused(tmp_path: Path, brightest: int) -> None:
    Image.new("L", (8, 8), brightest).save(tmp_path / "m.png")
    message = rf"m\.png is black: its brightest value is {brightest} of 255\. White marks the pixels to take\."
    with pytest.raises(ImageError, match=message):
        read_mask(tmp_path / "m.png", (8, 8))


def test_one_mask_for_all_or_one_each(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "c.png", "c.webp"):
        Image.new("L", (8, 8), 255).save(tmp_path / name)
    one = tmp_path / "a.png"
    assert find_masks(str(one), [Path("x/p.png"), Path("x/q.png")]) == (one, one)
    assert find_masks(str(tmp_path), [Path("x/b.png"), Path("x/a.webp")]) == (tmp_path / "b.jpg", one)
    with pytest.raises(ImageError, match=r"has no mask for z\.png: no image in it is called 'z' or 'z\.mask'\."):
        find_masks(str(tmp_path), [Path("x/z.png")])
    with pytest.raises(ImageError, match=r"more than one mask for c\.jpg: c\.png and c\.webp\. Keep one\."):
        find_masks(str(tmp_path), [Path("x/c.jpg")])
    with pytest.raises(ImageError, match=r"gone does not exist\. .* Give a mask, or a folder"):
        find_masks(str(tmp_path / "gone"), [Path("x/c.jpg")])


def test_several_masks_are_one_for_each_image(tmp_path: Path) -> None:
    first, second = tmp_path / "1.png", tmp_path / "2.png"
    for path in (first, second):
        Image.new("L", (8, 8), 255).save(path)
    sources = [Path("x/p.png"), Path("x/q.png")]
    assert find_masks((str(first), str(second)), sources) == (first, second)
    assert find_masks((str(first),), sources) == (first, first)
    with pytest.raises(ImageError, match=r"2 masks for 3 images: give one for each\."):
        find_masks((str(first), str(second)), [*sources, Path("x/r.png")])


def test_the_mask_of_a_pair_is_found_among_its_files(tmp_path: Path) -> None:
    for name in ("a.source.png", "a.target.png", "a.mask.png", "b.source.png", "b.source.webp"):
        Image.new("L", (8, 8), 255).save(tmp_path / name)
    assert find_masks(str(tmp_path), [tmp_path / "a.source.png"]) == (tmp_path / "a.mask.png",)
    assert find_masks(str(tmp_path), [tmp_path / "b.source.png"]) == (tmp_path / "b.source.webp",)
    (tmp_path / "b.source.webp").unlink()
    with pytest.raises(ImageError, match=r"has no mask for b\.source\.png"):
        find_masks(str(tmp_path), [tmp_path / "b.source.png"])
