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
from lbm_lora.model.constants import LBM_TENSORS, LBM_UNET, SDXL_VAE
from lbm_lora.model.names import check_shapes, checkpoint_shapes, denoiser_shapes
from lbm_lora.model.resolve import resolve_config

SCALE = 0.05
NAME = "denoiser.mid_block.attentions.0.proj_in.weight"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("pair"), scale=SCALE)


def test_scale_1_is_the_real_lbm() -> None:
    config = lbm_config(1)
    assert config.unet_config == dict(LBM_UNET)
    assert config.vae_config == dict(SDXL_VAE)
    assert len(denoiser_shapes(config.unet_config)) == LBM_TENSORS


@pytest.mark.parametrize("scale", [0.05, 0.2, 0.8])
def test_a_smaller_scale_can_be_built_and_is_narrower(scale: float) -> None:
    unet = lbm_config(scale).unet_config
    assert denoiser_shapes(unet)["conv_in.weight"][0] < 320
    widths = zip(unet["block_out_channels"], unet["attention_head_dim"], strict=True)
    assert all(width % heads == 0 for width, heads in widths)


def test_both_files_are_lbm_checkpoints_that_carry_their_configuration(pair: Pair) -> None:
    for path in (pair.base, pair.tuned):
        with open_checkpoint(path) as checkpoint:
            check_shapes(checkpoint.specs, checkpoint_shapes(lbm_config(SCALE)), where=path)
            assert resolve_config(checkpoint).unet == lbm_config(SCALE).unet


def test_the_denoiser_differs_and_the_vae_does_not(pair: Pair) -> None:
    with open_checkpoint(pair.base) as base, open_checkpoint(pair.tuned) as tuned:
        for key, differs in (("denoiser.conv_in.weight", True), ("vae.vae_model.decoder.conv_in.weight", False)):
            assert torch.equal(base.read(key), tuned.read(key)) != differs


def test_a_pair_that_is_there_is_left_as_it_is(pair: Pair) -> None:
    before = pair.base.stat().st_mtime_ns
    assert make_pair(pair.base.parent, scale=SCALE) == pair
    assert pair.base.stat().st_mtime_ns == before


def test_another_seed_replaces_a_pair(tmp_path: Path, pair: Pair) -> None:
    first = make_pair(tmp_path, scale=SCALE).tuned.read_bytes()
    assert first == pair.tuned.read_bytes()
    assert make_pair(tmp_path, scale=SCALE, seed=1).tuned.read_bytes() != first


def test_a_backbone_is_one_that_base_explains(tmp_path: Path) -> None:
    config = lbm_config(SCALE)
    with open_backbone(str(make_backbone(tmp_path, scale=SCALE)), config) as backbone:
        items = plan_base(backbone.unet.specs, backbone.vae.specs, config, where="the backbone")
    assert {"copied", "cropped", "dropped", "added"} == {item.action for item in items}


def test_a_weight_has_the_variance_of_its_fan_in() -> None:
    weight = made.weight(NAME, (320, 40, 3, 3), 0)
    assert float(weight.std()) == pytest.approx(1 / math.sqrt(360), rel=0.02)


def test_values_depend_on_seed_and_name_alone() -> None:
    shape = (40, 50)
    for make in (made.weight, made.delta):
        assert torch.equal(make(NAME, shape, 0), make(NAME, shape, 0))
        assert not torch.equal(make(NAME, shape, 0), make(NAME, shape, 1))
        assert not torch.equal(make(NAME, shape, 0), make("other.weight", shape, 0))


def test_a_delta_has_its_share_of_the_weights_norm() -> None:
    shape = (256, 384)
    share = made.delta(NAME, shape, 0).norm() / made.weight(NAME, shape, 0).norm()
    assert float(share) == pytest.approx(made.DELTA_SHARE, rel=0.03)


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


def test_powers_differ_by_layer_and_stay_in_their_range() -> None:
    powers = {made.power_of(f"layer.{index}.weight", 0) for index in range(50)}
    assert len(powers) > 40
    assert all(made.POWERS[0] <= power <= made.POWERS[1] for power in powers)


@pytest.mark.parametrize("shape", [(4, 36), (7,), ()])
def test_small_tensors_are_made_too(shape: tuple[int, ...]) -> None:
    assert made.weight("a.bias", shape, 0).shape == shape
    assert made.delta("a.bias", shape, 0).shape == shape
