"""The base of a backbone, as written: the twins, their entries, and that they are exact."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lbm_lora.errors import CheckpointError, ConfigError, OutputError
from lbm_lora.model.backbone import open_backbone
from lbm_lora.model.base import BaseFiles, twin_paths, write_base
from lbm_lora.model.build import load_model
from lbm_lora.model.config import LBMConfig, parse_config
from standins import LBM_YAML, MINI, TINY, Depth, base_tensors, lbm_unet_config, write_backbone

CONFIG = parse_config(LBM_YAML, where="config.yaml")


def written(backbone: Path, out: Path, config: LBMConfig = CONFIG, dtype: torch.dtype = torch.bfloat16) -> BaseFiles:
    with open_backbone(str(backbone), config) as opened:
        return write_base(opened, config, out, dtype=dtype, source_config=LBM_YAML)


@pytest.fixture(scope="module")
def result(backbone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> BaseFiles:
    return written(backbone_folder, tmp_path_factory.mktemp("base") / "checkpoints" / "exact_base.ckpt")


def twins(result: BaseFiles) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    held = torch.load(result.ckpt, weights_only=True)
    return load_file(result.safetensors), held["model_state_dict"]


@pytest.mark.parametrize(
    ("depth", "count", "dtype"), [(MINI, 1676, torch.bfloat16), (TINY, 496, torch.float16), (TINY, 496, torch.float32)]
)
def test_the_base_is_the_crop_of_its_backbone_bit_for_bit(
    tmp_path: Path, depth: Depth, count: int, dtype: torch.dtype
) -> None:
    """Against a crop written in the stand-ins, without the package."""
    result = written(write_backbone(tmp_path / "backbone", depth), tmp_path / "base.ckpt", dtype=dtype)
    expected = base_tensors(depth, dtype=dtype)
    assert sum(key.startswith("denoiser.") for key in expected) == count
    for tensors in twins(result):
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
        assert {tensor.dtype for tensor in tensors.values()} == {dtype}


def test_the_denoiser_loads_strictly(result: BaseFiles) -> None:
    network: Any = UNet2DConditionModel.from_config(lbm_unet_config(TINY))
    state = {
        k.removeprefix("denoiser."): v for k, v in load_file(result.safetensors).items() if k.startswith("denoiser.")
    }
    network.load_state_dict(state, strict=True)


def test_the_result_says_what_was_done(result: BaseFiles) -> None:
    assert result.counts == {"copied": 722, "cropped": 22, "added": 1, "dropped": 4}
    assert result.notes == ()
    assert len(load_file(result.safetensors)) == 745


def test_the_entries_of_the_ckpt(result: BaseFiles) -> None:
    held = torch.load(result.ckpt, weights_only=True)
    assert held.keys() == {
        "model_state_dict", "state_dict", "config", "lbm_config", "backbone_signature", "architecture", "torch_dtype",
        "source_config", "initialization", "created_from", "lpips_excluded", "note",
    }  # fmt: skip
    assert held["architecture"] == "LBM"
    assert held["torch_dtype"] == "torch.bfloat16"
    assert held["initialization"] == "exact_architecture_match"
    assert held["created_from"] == "inference_config_initialization"
    assert held["lpips_excluded"] is True
    assert held["source_config"] == LBM_YAML
    assert held["backbone_signature"] == "backbone", "no folder name"
    assert held["config"]["bridge_noise_sigma"] == 0.005
    assert held["lbm_config"]["unet"]["cross_attention_dim"] == [16, 32, 64]


def test_the_ckpt_suits_the_earlier_implementation(result: BaseFiles) -> None:
    """Its loader passes three values of its own beside `config`, whose keys it and LBM's own configuration know."""
    held = torch.load(result.ckpt, weights_only=True)

    def create(backbone_signature: str, device: str, torch_dtype: torch.dtype, **config: object) -> dict[str, object]:
        return config

    given = create(
        backbone_signature=held["backbone_signature"], device="cpu", torch_dtype=torch.bfloat16, **held["config"]
    )
    assert given.keys() == {
        "vae_num_channels", "unet_input_channels", "conditioning_images_keys", "conditioning_masks_keys", "source_key",
        "target_key", "mask_key", "latent_loss_weight", "latent_loss_type", "pixel_loss_type", "pixel_loss_weight",
        "pixel_loss_max_size", "timestep_sampling", "logit_mean", "logit_std", "selected_timesteps", "prob",
        "bridge_noise_sigma",
    }  # fmt: skip


def test_the_ckpt_suits_lbms_own_loader(result: BaseFiles) -> None:
    """It takes the keys of `state_dict` that start with `model.`, and loads them strictly."""
    held = torch.load(result.ckpt, weights_only=True, mmap=True)
    state = {key[6:]: value for key, value in held["state_dict"].items() if key.startswith("model.")}
    expected = load_file(result.safetensors)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in expected.items())
    assert result.ckpt.stat().st_size < 1.2 * result.safetensors.stat().st_size, "no tensor is stored twice"


def test_both_twins_build_a_model_on_their_own(result: BaseFiles, tmp_path: Path) -> None:
    for path in (result.safetensors, result.ckpt):
        alone = tmp_path / path.name
        alone.write_bytes(path.read_bytes())
        model = load_model(alone)
        assert model.config == result.config
        assert model.config.target_key == "source_image_paste"


def test_the_same_inputs_give_the_same_bytes(result: BaseFiles, backbone_folder: Path, tmp_path: Path) -> None:
    again = written(backbone_folder, tmp_path / "elsewhere" / "base.safetensors")
    assert again.safetensors.read_bytes() == result.safetensors.read_bytes()
    assert again.ckpt.read_bytes() == result.ckpt.read_bytes()


def test_metadata_of_the_safetensors(result: BaseFiles) -> None:
    with safe_open(result.safetensors, "pt") as file:
        metadata = file.metadata()
    assert metadata.keys() == {
        "format", "lbm_lora_file", "lbm_config", "backbone_signature", "architecture", "torch_dtype", "initialization",
    }  # fmt: skip


def test_more_input_channels_are_zeros(backbone_folder: Path, tmp_path: Path) -> None:
    config = parse_config(LBM_YAML | {"unet_input_channels": 8}, where="config.yaml")
    result = written(backbone_folder, tmp_path / "base.ckpt", config, torch.float32)
    weight = load_file(result.safetensors)["denoiser.conv_in.weight"]
    assert torch.equal(weight[:, :4], base_tensors(TINY)["denoiser.conv_in.weight"])
    assert weight[:, 4:].eq(0).all()
    assert result.counts["padded"] == 1
    assert result.config.unet_config["in_channels"] == 8


def test_a_base_from_fp16_files_is_not_exact(tmp_path: Path) -> None:
    half = write_backbone(tmp_path / "half", TINY, dtype=torch.float16, variant="fp16")
    result = written(half, tmp_path / "base.ckpt")
    assert result.notes == (
        "The backbone's weights are stored in fp16: the base is not exact. Full-precision files, rounded once to bf16, "
        "differ from it in about 6 % of the elements.",
    )
    found, exact = load_file(result.safetensors), base_tensors(TINY, dtype=torch.bfloat16)
    differing = sum(int((found[name] != tensor).sum()) for name, tensor in exact.items())
    assert 0.04 < differing / sum(tensor.numel() for tensor in exact.values()) < 0.08
    assert written(half, tmp_path / "base16.ckpt", dtype=torch.float16).notes == ()


def test_a_shifted_scheduler_is_said(backbone_folder: Path, tmp_path: Path) -> None:
    folder = write_backbone(tmp_path / "backbone", TINY)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("1.0", "3.0"))
    assert written(folder, tmp_path / "base.ckpt").notes == (
        "The backbone's scheduler has shift 3.0, but LBM's bridge and this package use 1.",
    )


def test_values_that_are_not_finite_stop_and_leave_nothing(tmp_path: Path) -> None:
    folder = write_backbone(tmp_path / "backbone", TINY)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_out.bias"][0] = float("nan")
    tensors["conv_in.bias"][0] = 1e6
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        written(folder, tmp_path / "out" / "base.ckpt", dtype=torch.float16)
    assert str(caught.value) == (
        f"backbone {folder}: 2 tensors are not finite in fp16: denoiser.conv_in.bias, denoiser.conv_out.bias. "
        "Download the files again, or choose another torch_dtype."
    )
    assert not (tmp_path / "out").exists()


def test_a_configuration_for_other_widths_is_refused(backbone_folder: Path, tmp_path: Path) -> None:
    config = parse_config({"unet": lbm_unet_config(MINI)}, where="config.yaml")
    with pytest.raises(CheckpointError, match="tensors do not fit the rule that makes a base"):
        written(backbone_folder, tmp_path / "base.ckpt", config)


def test_a_configuration_that_contradicts_the_backbone(backbone_folder: Path, tmp_path: Path) -> None:
    config = parse_config({"vae_num_channels": 8}, where="config.yaml")
    with pytest.raises(ConfigError, match=r"vae_num_channels is 8, but vae\.latent_channels is 4"):
        written(backbone_folder, tmp_path / "base.ckpt", config)


def test_names_of_the_twins() -> None:
    assert twin_paths(Path("a/b.ckpt")) == (Path("a/b.safetensors"), Path("a/b.ckpt"))
    assert twin_paths(Path("a/b.safetensors")) == (Path("a/b.safetensors"), Path("a/b.ckpt"))
    assert twin_paths(Path("a/b.pth")) == (Path("a/b.safetensors"), Path("a/b.pth"))
    with pytest.raises(OutputError) as caught:
        twin_paths(Path("a/b"))
    assert str(caught.value) == "save_path must end in .ckpt or .safetensors (both are written), got a/b."


def test_the_backbone_is_never_overwritten(backbone_folder: Path) -> None:
    weights = backbone_folder / "unet" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    with pytest.raises(OutputError, match="would be overwritten"):
        written(backbone_folder, weights.with_suffix(".ckpt"))
    assert weights.read_bytes() == before


def test_progress_counts_every_tensor(backbone_folder: Path, tmp_path: Path) -> None:
    class Listener:
        total, done = 0, 0

        def start(self, total: int, what: str) -> None:
            self.total = total

        def advance(self, n: int = 1) -> None:
            self.done += n

        def note(self, message: str) -> None:
            raise AssertionError(message)

    listener = Listener()
    with open_backbone(str(backbone_folder), CONFIG) as opened:
        write_base(opened, CONFIG, tmp_path / "base.ckpt", progress=listener)
    assert listener.done == listener.total == 745


def test_the_text_of_the_files_is_short(result: BaseFiles) -> None:
    with safe_open(result.safetensors, "pt") as file:
        count = len(file.keys())
    assert repr(result) == f"<BaseFiles {result.safetensors}, {result.ckpt}: {count} tensors, bf16>"
