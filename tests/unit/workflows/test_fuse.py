"""The workflow `fuse`: base + full-rank LoRA is the tuned checkpoint; everything else is untouched."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.configs.base import BaseConfig
from lbm_lora.configs.extract import ExtractConfig
from lbm_lora.configs.fuse import FuseConfig
from lbm_lora.errors import ConfigError, OutputError, PatternError, WrongBaseError
from lbm_lora.model.baseline import check_pair
from lbm_lora.model.build import load_model
from lbm_lora.progress import LbmLoraWarning
from lbm_lora.workflows import extract
from lbm_lora.workflows.fuse import run
from standins import Lbm


@pytest.fixture(scope="module")
def lora(lbm: Lbm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exact LoRA, in fp32."""
    path = tmp_path_factory.mktemp("lora") / "l.safetensors"
    extract.run(
        ExtractConfig(
            base_model_path=lbm.base,
            tuned_model_path=lbm.tuned,
            save_to=path,
            rank=9999,
            conv_rank=9999,
            save_precision="float",
        )
    )
    return path


def test_full_rank_gives_the_tuned_checkpoint_bit_for_bit(lbm: Lbm, lora: Path, tmp_path: Path) -> None:
    result = run(FuseConfig(base_model_path=lbm.base, lora_path=(lora,), save_to=tmp_path / "f.safetensors"))
    fused, tuned = load_file(result.output), load_file(lbm.tuned)
    assert fused.keys() == tuned.keys()
    assert all(torch.equal(fused[key], tuned[key]) for key in tuned)
    assert result.changed == len([key for key in tuned if key.startswith("denoiser.")])
    assert result.tensors == len(tuned)


@pytest.mark.parametrize("scale", [0.0, -0.5, 0.25])
def test_scales_multiply_factors_and_dense_deltas_alike(lbm: Lbm, lora: Path, tmp_path: Path, scale: float) -> None:
    path = tmp_path / "f.safetensors"
    run(FuseConfig(base_model_path=lbm.base, lora_path=(lora,), lora_scale=(scale,), save_to=path))
    fused, base, tuned = load_file(path), load_file(lbm.base), load_file(lbm.tuned)
    for key, weight in base.items():
        if not key.startswith("denoiser."):
            continue
        expected = weight.double() + scale * (tuned[key].double() - weight.double())
        assert torch.equal(fused[key], expected.float().to(weight.dtype)) or torch.allclose(
            fused[key].double(), expected, rtol=2**-8, atol=1e-7
        )
        if scale == 0:
            assert torch.equal(fused[key], weight)


def test_scales_by_layer(lbm: Lbm, lora: Path, tmp_path: Path) -> None:
    path, base, tuned = tmp_path / "f.safetensors", load_file(lbm.base), load_file(lbm.tuned)
    scale = "1,mid_block=0,denoiser.conv_in=0"
    result = run(FuseConfig(base_model_path=lbm.base, lora_path=(lora,), lora_scale=(scale,), save_to=path))
    fused = load_file(path)
    off = {key for key in tuned if key.startswith(("denoiser.mid_block", "denoiser.conv_in."))}
    assert len(off) > 40
    for key, tensor in fused.items():
        assert torch.equal(tensor, base[key] if key in off else tuned[key]), key
    assert result.changed == len([key for key in tuned if key.startswith("denoiser.")]) - len(off)
    assert result.adapters[0].lora_scale == scale
    config = FuseConfig(base_model_path=lbm.base, lora_path=(lora,), lora_scale=("1,atn1=0",), save_to=path)
    with pytest.raises(PatternError) as caught:
        run(config)
    text = str(caught.value)
    assert text.startswith(f"{lora}: pattern 'atn1' matches none of ")
    assert " names. Nearest: attn1" in text


def test_two_loras_add_up(lbm: Lbm, lora: Path, tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    run(FuseConfig(base_model_path=lbm.base, lora_path=(lora, lora), lora_scale=(1.5, -0.5), save_to=path))
    fused, tuned = load_file(path), load_file(lbm.tuned)
    assert all(torch.allclose(fused[key].float(), tuned[key].float(), rtol=2**-7, atol=1e-6) for key in tuned)


@pytest.mark.parametrize("name", ["f.safetensors", "f.ckpt"])
def test_the_fused_file_is_a_whole_model_in_either_container(lbm: Lbm, lora: Path, tmp_path: Path, name: str) -> None:
    made = tmp_path / "made.ckpt"
    from lbm_lora.workflows import base

    base.run(
        BaseConfig(backbone_signature=str(lbm.backbone), config_path=lbm.tuned.parent / "config.yaml", save_path=made)
    )
    for source in (made, made.with_suffix(".safetensors")):
        path = tmp_path / f"{source.suffix[1:]}_{name}"
        run(FuseConfig(base_model_path=source, lora_path=(lora,), save_to=path))
        with open_checkpoint(source) as before, open_checkpoint(path) as after:
            check_pair(before, after)  # it does not say that it is a base, and may stand in the place of tuned
        model = load_model(path, dtype=torch.float32)
        tuned = load_file(lbm.tuned)
        assert torch.equal(model.denoiser.conv_in.weight, tuned["denoiser.conv_in.weight"].float())
        if path.suffix == ".ckpt":
            held = torch.load(path, weights_only=True)
            assert not {"backbone_signature", "unet", "vae"} & held["config"].keys()
            assert held["backbone_signature"] == lbm.backbone.name
            assert [f"model.{key}" for key in held["model_state_dict"]] == list(held["state_dict"])


def test_a_base_that_was_written_before_gives_the_same_file(lbm: Lbm, lora: Path, tmp_path: Path) -> None:
    """Its `config` held our sections and the backbone, which the earlier implementation's loader refuses."""
    config = {"backbone_signature": "x", "unet": {"in_channels": 4}, "vae": {}, "source_key": "source_image"}
    torch.save({"model_state_dict": load_file(lbm.base), "config": config, "epoch": 1}, tmp_path / "old.ckpt")
    path = tmp_path / "f.ckpt"
    run(FuseConfig(base_model_path=tmp_path / "old.ckpt", lora_path=(lora,), save_to=path))
    held = torch.load(path, weights_only=True)
    assert held["config"] == {"source_key": "source_image"}
    assert held["lbm_config"] == config
    assert held["backbone_signature"] == "x"
    assert held["epoch"] == 1


def test_what_is_no_lbm_keeps_its_entries(tmp_path: Path) -> None:
    state = {"a.weight": torch.ones(3, 2)}
    torch.save({"state_dict": state, "config": {"unet": 1}}, tmp_path / "net.ckpt")
    save_file({"a.diff": torch.ones(3, 2)}, tmp_path / "l.safetensors")
    path = tmp_path / "f.ckpt"
    with pytest.warns(UserWarning, match="cannot be checked"):
        run(FuseConfig(base_model_path=tmp_path / "net.ckpt", lora_path=(tmp_path / "l.safetensors",), save_to=path))
    held = torch.load(path, weights_only=True)
    assert held.keys() == {"model_state_dict", "config"}
    assert held["config"] == {"unet": 1}
    assert torch.equal(held["model_state_dict"]["a.weight"], torch.full((3, 2), 2.0))


def test_it_is_replaced_by_itself_also_with_a_long_header_of_the_base(lbm: Lbm, lora: Path, tmp_path: Path) -> None:
    """A thumbnail, as ModelSpec has it."""
    (tmp_path / "base").mkdir()
    base, thumbnail = tmp_path / "base" / "b.safetensors", {"modelspec.thumbnail": "x" * 90_000}
    with open_checkpoint(lbm.base) as checkpoint:
        save_file(load_file(lbm.base), base, metadata={**checkpoint.metadata, **thumbnail})
    config = FuseConfig(base_model_path=base, lora_path=(lora,), save_to=tmp_path / "f.safetensors")
    run(config)
    before = config.save_to.read_bytes()
    run(config)
    assert config.save_to.read_bytes() == before
    with open_checkpoint(config.save_to) as fused:
        assert fused.metadata.items() >= thumbnail.items()


def test_another_base_is_refused_by_name(lbm: Lbm, lora: Path, tmp_path: Path) -> None:
    tensors = load_file(lbm.base)
    tensors["denoiser.conv_in.bias"] += 1
    save_file(tensors, tmp_path / "other.safetensors")
    config = FuseConfig(
        base_model_path=tmp_path / "other.safetensors", lora_path=(lora,), save_to=tmp_path / "f.safetensors"
    )
    with pytest.raises(WrongBaseError, match=r"1 of \d+ tensors differ: conv_in\.bias\. .*allow_other_base"):
        run(config)
    assert not config.save_to.exists()


def test_no_lora_is_refused(lbm: Lbm, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^lora_path names no file"):
        run(FuseConfig(base_model_path=lbm.base, lora_path=(), save_to=tmp_path / "f.safetensors"))
    assert list(tmp_path.iterdir()) == []


def test_another_base_that_is_allowed_is_said(lbm: Lbm, lora: Path, tmp_path: Path) -> None:
    config = FuseConfig(
        base_model_path=lbm.tuned, lora_path=(lora,), save_to=tmp_path / "f.safetensors", allow_other_base=True
    )
    with pytest.warns(LbmLoraWarning, match="but the tuned checkpoint that it was extracted from"):
        run(config)
    assert config.save_to.exists()


def test_outputs_that_cannot_be(lbm: Lbm, lora: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a fused checkpoint is a \.safetensors or a \.ckpt file"):
        run(FuseConfig(base_model_path=lbm.base, lora_path=(lora,), save_to=tmp_path / "f.bin"))
    with pytest.raises(OutputError, match="would be overwritten"):
        run(FuseConfig(base_model_path=lbm.base, lora_path=(lora,), save_to=lora))
    with pytest.raises(ConfigError, match=r"lora_scale has 2 values for 1 LoRA\b"):
        run(
            FuseConfig(
                base_model_path=lbm.base, lora_path=(lora,), lora_scale=(1.0, 2.0), save_to=tmp_path / "f.safetensors"
            )
        )


def test_an_output_of_another_kind_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.safetensors"
    with pytest.raises(OutputError, match=r"a fused checkpoint is a \.safetensors or a \.ckpt file\.$"):
        run(FuseConfig(base_model_path=nothing, lora_path=(nothing,), save_to=tmp_path / "f.bin"))
