"""The pair on disk, and the numbers in it."""

import math
from pathlib import Path

import pytest
import torch

from benchmarks.perf import pair as made
from benchmarks.perf.pair import Pair, lbm_config, make_backbone, make_pair
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.model.backbone import open_backbone
from lbm_lora.model.base import plan_base
from lbm_lora.model.names import check_shapes, checkpoint_shapes
from lbm_lora.model.resolve import resolve_config

SCALE = 0.05
NAME = "denoiser.mid_block.attentions.0.proj_in.weight"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("pair"), scale=SCALE)


def test_both_files_are_lbm_checkpoints_that_carry_their_configuration(pair: Pair) -> None:
    for path in (pair.base, pair.tuned):
        with open_checkpoint(path) as checkpoint:
            check_shapes(checkpoint.specs, checkpoint_shapes(lbm_config(SCALE)), where=path)
            assert resolve_config(checkpoint).unet == lbm_config(SCALE).unet


def test_a_backbone_is_one_that_base_explains(tmp_path: Path) -> None:
    config = lbm_config(SCALE)
    with open_backbone(str(make_backbone(tmp_path, scale=SCALE)), config) as backbone:
        items = plan_base(backbone.unet.specs, backbone.vae.specs, config, where="the backbone")
    assert {"copied", "cropped", "dropped", "added"} == {item.action for item in items}


def test_values_depend_on_seed_and_name_alone() -> None:
    shape = (40, 50)
    for make in (made.weight, made.delta):
        assert torch.equal(make(NAME, shape, 0), make(NAME, shape, 0))
        assert not torch.equal(make(NAME, shape, 0), make(NAME, shape, 1))
        assert not torch.equal(make(NAME, shape, 0), make("other.weight", shape, 0))


def test_the_spectrum_falls_as_its_power_over_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made.delta(NAME, (300, 400), 0)
    monkeypatch.setattr(made, "NOISE_ENERGY", 0.0)
    falling = made.delta(NAME, (300, 400), 0)
    singular = torch.linalg.svdvals(falling.double())
    index = torch.arange(1, made.COLUMNS + 1, dtype=torch.float64)
    expected = singular[0] * index ** -made.power_of(NAME, 0)
    torch.testing.assert_close(singular[: made.COLUMNS], expected, rtol=1e-4, atol=0)
    assert float(singular[made.COLUMNS]) < 1e-5 * float(singular[0])
    noise = whole - falling * math.sqrt(0.7)
    assert float(noise.square().sum() / whole.square().sum()) == pytest.approx(0.3, rel=0.03)
