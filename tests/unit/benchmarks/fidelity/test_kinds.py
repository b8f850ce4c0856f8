"""Kinds of images to measure on."""

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.fidelity.kinds import ALIKE, HELD_OUT, PREDICTED, SHIFTED, kinds
from lbm_lora import bundled
from lbm_lora.ranks import SHIFTS


def test_every_kind_of_the_page_has_images(tmp_path: Path) -> None:
    held_out = sorted(bundled.PAIRS.glob("*.source.png"))
    found = kinds(tmp_path / "noise", held_out)
    assert list(found) == [HELD_OUT, *SHIFTED]
    assert found[HELD_OUT].images == held_out
    assert all(path.exists() for kind in found.values() for path in kind.images)
    assert [kind.size for kind in found.values()] == [None, None, None, 192, 91]


def test_predictions_are_measured_at_other_images_of_the_calibrations_kind(tmp_path: Path) -> None:
    alike = sorted(bundled.PHOTOS.glob("*.jpg"))
    found = kinds(tmp_path / "noise", [], alike)
    assert [found[name].size for name in ALIKE] == [None, 192, 91]
    assert all(found[name].images == alike for name in ALIKE)
    assert {*PREDICTED} <= {*SHIFTED, *ALIKE}
    assert {*PREDICTED.values()} <= {*SHIFTS}


def test_noise_is_equal_in_every_run_and_has_spots_of_several_sizes(tmp_path: Path) -> None:
    first, second = (kinds(tmp_path / name, [])["noise"].images for name in "ab")
    pixels = [np.asarray(Image.open(path), np.float32) for path in first]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))
    steps = [float(np.abs(np.diff(image, axis=1)).mean()) for image in pixels]
    assert steps[0] > 2 * steps[2] > 4 * steps[3]
    assert not np.array_equal(pixels[0], pixels[1])
