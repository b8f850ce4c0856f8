"""The pair on disk."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import machine
from benchmarks.pair import Pair, make_backbone, make_pair
from benchmarks.sizes import lbm_config
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.model.backbone import open_backbone
from lbm_lora.model.base import plan_base
from lbm_lora.model.names import check_shapes, checkpoint_shapes
from lbm_lora.model.resolve import resolve_config

SCALE = 0.05


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("pair"), scale=SCALE)


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
    assert json.loads((pair.base.parent / "pair.json").read_text())["seed"] == 0


def test_the_same_seed_gives_the_same_bytes(pair: Pair, tmp_path: Path) -> None:
    assert make_pair(tmp_path, scale=SCALE).tuned.read_bytes() == pair.tuned.read_bytes()


def test_another_seed_replaces_it(tmp_path: Path) -> None:
    first = make_pair(tmp_path, scale=SCALE).base.read_bytes()
    assert make_pair(tmp_path, scale=SCALE, seed=1).base.read_bytes() != first


def test_a_backbone_is_one_that_base_explains(tmp_path: Path) -> None:
    config = lbm_config(SCALE)
    with open_backbone(str(make_backbone(tmp_path, scale=SCALE)), config) as backbone:
        items = plan_base(backbone.unet.specs, backbone.vae.specs, config, where="the backbone")
    assert {"copied", "cropped", "dropped", "added"} == {item.action for item in items}


def test_a_small_disk_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: a pair needs 1e?[0-9.]+ GB and [0-9.]+ GB are free") as refused:
        machine.require_space(tmp_path, 10**18, "a pair")
    assert "\n" not in str(refused.value)
    assert "--scale 0.2" in str(refused.value)
