"""Which images are learnt from and which are measured on, and their points with the tuned model's outputs."""

import re
from pathlib import Path

import pytest
import torch
from two_levels import noise_images, two_level_model

from lbm_lora.errors import ConfigError
from lbm_lora.fidelity.checks import held_out
from lbm_lora.model.build import LBMModel
from lbm_lora.progress import SILENT
from lbm_lora.refinement.images import ImageSplit, answered_images, calibration_split, split_images


@pytest.fixture(scope="module")
def model() -> LBMModel:
    return two_level_model()


def folder_of(folder: Path, count: int) -> list[Path]:
    """So many files that are named as images; none is opened."""
    folder.mkdir()
    paths = [folder / f"{index:03d}.png" for index in range(count)]
    for path in paths:
        path.touch()
    return paths


@pytest.mark.parametrize(("count", "held"), [(2, 1), (15, 1), (300, 16)])
def test_one_image_in_eight_is_measured_on_up_to_sixteen(tmp_path: Path, count: int, held: int) -> None:
    paths = folder_of(tmp_path / "images", count)
    split = split_images(str(tmp_path / "images"), None)
    assert len(split.held) == held
    assert sorted(split.all) == paths
    assert split == split_images(f"{tmp_path}/images/*.png", None)
    places = [paths.index(path) for path in split.held]
    steps = {later - earlier for earlier, later in zip(places, [*places[1:], count + places[0]], strict=True)}
    assert steps <= {count // held, -(-count // held)}  # evenly over the folder


@pytest.mark.parametrize("count", [4, 64])
def test_nothing_is_learnt_from_the_images_that_a_calibration_held_out(tmp_path: Path, count: int) -> None:
    paths = folder_of(tmp_path / "images", count)
    split = calibration_split(paths)
    assert list(split.held) == [paths[index] for index in held_out(count)]
    assert sorted(split.all) == paths
    assert not {*split.held} & {*split.learnt}


def test_an_image_in_both_is_found_under_any_name(tmp_path: Path) -> None:
    shared = folder_of(tmp_path / "learnt", 3)[1]
    (tmp_path / "held").mkdir()
    (tmp_path / "held/other.png").symlink_to(shared)
    text = f"^{re.escape(str(shared.resolve()))} is in images and in held_images. Held-out images must not be .*\\.$"
    with pytest.raises(ConfigError, match=text):
        split_images(str(tmp_path / "learnt"), str(tmp_path / "held"))


def test_points_hold_what_the_tuned_model_says_and_mirrors_are_learnt_alone(model: LBMModel, tmp_path: Path) -> None:
    one, other = noise_images(tmp_path)
    split = ImageSplit(learnt=(one,), held=(other,))
    (plain, held), (mirrored, _) = (
        answered_images(model, split, timesteps=(1000.0, 500.0), size=64, seed=3, mirror=mirror, progress=SILENT)
        for mirror in (False, True)
    )
    assert [found.point.timestep for found in plain] == [1000.0, 500.0]
    assert [found.point.timestep for found in mirrored] == [1000.0, 500.0] * 2
    assert [found.point.timestep for found in held] == [1000.0, 500.0]
    for found, again in zip(plain, mirrored[:2], strict=True):
        assert torch.equal(found.point.state, again.point.state)
    assert not torch.allclose(mirrored[2].point.state, plain[0].point.state)
    for found in (*plain, *held):
        with torch.no_grad():
            wanted = model.denoise(found.point.state, torch.tensor([found.point.timestep]))
        torch.testing.assert_close(found.wanted, wanted)
