"""`fuse`: base + full-rank LoRA is the tuned checkpoint; everything else is untouched."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import ConfigError, OutputError, PatternError, WrongBaseError
from lbm_lora.model.baseline import check_pair
from lbm_lora.model.build import load_model
from lbm_lora.progress import LbmLoraWarning
from lbm_lora.verbs.base import make_base
from lbm_lora.verbs.extract import extract
from lbm_lora.verbs.fuse import fuse
from standins import Lbm


@pytest.fixture(scope="module")
def lora(lbm: Lbm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exact LoRA, in fp32."""
    path = tmp_path_factory.mktemp("lora") / "l.safetensors"
    extract(lbm.base, lbm.tuned, save_to=path, rank=9999, conv_rank=9999, save_precision="float")
    return path


def test_full_rank_gives_the_tuned_checkpoint_bit_for_bit(lbm: Lbm, lora: Path, tmp_path: Path) -> None:
    fuse(lbm.base, lora, save_to=tmp_path / "f.safetensors")
    base, tuned = load_file(lbm.base), load_file(lbm.tuned)
    before = {key: tensor.clone() for key, tensor in base.items()}
    for fused in (load_file(tmp_path / "f.safetensors"), fuse(base, lora)):
        assert fused.keys() == tuned.keys()
        assert all(torch.equal(fused[key], tuned[key]) for key in tuned)
    assert all(torch.equal(base[key], before[key]) for key in before)


def test_scales_multiply_factors_and_dense_deltas_alike_and_add_up(lbm: Lbm, lora: Path) -> None:
    base, tuned = load_file(lbm.base), load_file(lbm.tuned)
    for loras, scales, total in ((lora, -0.5, -0.5), (lora, 0.0, 0.0), ([lora, lora], (1.5, -0.5), 1.0)):
        fused = fuse(lbm.base, loras, lora_scale=scales)
        for key, weight in base.items():
            expected = weight.double() + total * (tuned[key].double() - weight.double())
            torch.testing.assert_close(fused[key].double(), expected, rtol=2**-7, atol=1e-6)


def test_scales_by_layer(lbm: Lbm, lora: Path) -> None:
    base, tuned = load_file(lbm.base), load_file(lbm.tuned)
    off = {key for key in tuned if key.startswith(("denoiser.mid_block", "denoiser.conv_in."))}
    for key, tensor in fuse(lbm.base, lora, lora_scale="1,mid_block=0,denoiser.conv_in=0").items():
        assert torch.equal(tensor, base[key] if key in off else tuned[key]), key
    with pytest.raises(PatternError, match=r"l\.safetensors: pattern 'atn1' matches none of .* Nearest: attn1"):
        fuse(lbm.base, lora, lora_scale="1,atn1=0")


@pytest.mark.parametrize("suffixes", [("ckpt", "ckpt"), ("safetensors", "ckpt"), ("ckpt", "safetensors")])
def test_the_fused_file_is_a_whole_model_in_either_container(
    lbm: Lbm, lora: Path, tmp_path: Path, suffixes: tuple[str, str]
) -> None:
    source, path = tmp_path / f"made.{suffixes[0]}", tmp_path / f"f.{suffixes[1]}"
    make_base(source, backbone_signature=str(lbm.backbone), config_path=lbm.tuned.parent / "config.yaml")
    fuse(source, lora, save_to=path)
    with open_checkpoint(source) as before, open_checkpoint(path) as after:
        check_pair(before, after)  # it does not say that it is a base, and may stand in the place of tuned
    weight = load_model(path, dtype=torch.float32).denoiser.conv_in.weight
    assert torch.equal(weight, load_file(lbm.tuned)["denoiser.conv_in.weight"].float())
    if path.suffix == ".ckpt":
        held = torch.load(path, weights_only=True)
        assert not {"backbone_signature", "unet", "vae"} & held["config"].keys()
        assert held["backbone_signature"] == lbm.backbone.name
        assert [f"model.{key}" for key in held["model_state_dict"]] == list(held["state_dict"])


def test_a_base_that_was_written_before_gives_the_same_file(lbm: Lbm, lora: Path, tmp_path: Path) -> None:
    """Its `config` held our sections and the backbone, which the earlier implementation's loader refuses."""
    config = {"backbone_signature": "x", "unet": {"in_channels": 4}, "vae": {}, "source_key": "source_image"}
    torch.save({"model_state_dict": load_file(lbm.base), "config": config, "epoch": 1}, tmp_path / "old.ckpt")
    fuse(tmp_path / "old.ckpt", lora, save_to=tmp_path / "f.ckpt")
    held = torch.load(tmp_path / "f.ckpt", weights_only=True)
    assert held["config"] == {"source_key": "source_image"}
    assert (held["lbm_config"], held["backbone_signature"], held["epoch"]) == (config, "x", 1)


def test_what_is_no_lbm_keeps_its_entries(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a.weight": torch.ones(3, 2)}, "config": {"unet": 1}}, tmp_path / "net.ckpt")
    save_file({"a.diff": torch.ones(3, 2)}, tmp_path / "l.safetensors")
    with pytest.warns(UserWarning, match="cannot be checked"):
        fuse(tmp_path / "net.ckpt", tmp_path / "l.safetensors", save_to=tmp_path / "f.ckpt")
    held = torch.load(tmp_path / "f.ckpt", weights_only=True)
    assert held.keys() == {"model_state_dict", "config"}
    assert held["config"] == {"unet": 1}
    assert torch.equal(held["model_state_dict"]["a.weight"], torch.full((3, 2), 2.0))


def test_it_is_replaced_by_itself_also_with_a_long_header_of_the_base(lbm: Lbm, lora: Path, tmp_path: Path) -> None:
    """A thumbnail, as ModelSpec has it."""
    base, path, thumbnail = tmp_path / "b.safetensors", tmp_path / "f.safetensors", "x" * 90_000
    save_file(load_file(lbm.base), base, metadata={"modelspec.thumbnail": thumbnail})
    for _ in range(2):
        fuse(base, lora, save_to=path, lora_scale=0.5)
    with open_checkpoint(path) as fused:
        assert fused.metadata["modelspec.thumbnail"] == thumbnail


def test_another_base_is_refused_by_name_or_allowed_with_a_warning(lbm: Lbm, lora: Path, tmp_path: Path) -> None:
    tensors = load_file(lbm.base)
    tensors["denoiser.conv_in.bias"] += 1
    with pytest.raises(WrongBaseError, match=r"1 of \d+ tensors differ: conv_in\.bias\. .*allow_other_base"):
        fuse(tensors, lora, save_to=tmp_path / "f.safetensors")
    assert list(tmp_path.iterdir()) == []
    with pytest.warns(LbmLoraWarning, match="but the tuned checkpoint that it was extracted from"):
        fuse(lbm.tuned, lora, allow_other_base=True)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"lora": ()}, ConfigError, "^lora names no file, so there is nothing to fuse"),
        ({"lora_scale": (1.0, 2.0)}, ConfigError, r"lora_scale has 2 values for 1 LoRA\b"),
        ({"save_to": "f.bin"}, OutputError, r"a fused checkpoint is a \.safetensors or a \.ckpt file\.$"),
        ({"save_to": "LORA"}, OutputError, "would be overwritten"),
    ],
)
def test_what_cannot_be_is_refused(
    lbm: Lbm, lora: Path, changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    before = lora.read_bytes()
    options: dict[str, Any] = {"lora": lora, **changes}
    if options.get("save_to") == "LORA":
        options["save_to"] = lora
    with pytest.raises(error, match=text):
        fuse(lbm.base, **options)
    assert lora.read_bytes() == before
