"""LBM's configuration: defaults, what is accepted, and what an error says."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from lbm_lora.checkpoint import Checkpoint, TensorSpec, open_checkpoint
from lbm_lora.errors import ConfigError
from lbm_lora.model.config import LBMConfig, parse_config
from lbm_lora.model.constants import LBM_UNET, SDXL_VAE
from lbm_lora.model.names import checkpoint_shapes
from lbm_lora.model.resolve import config_beside, config_to_metadata, resolve_config
from standins import LBM_YAML, TINY, base_tensors, lbm_unet_config, vae_config, write_lbm_yaml


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"bridge_noise_simga": 0.1},
            "c.yaml: unknown key 'bridge_noise_simga'. Did you mean 'bridge_noise_sigma'?",
        ),
        ({"bridge_noise_sigma": -1}, "c.yaml: bridge_noise_sigma: Input should be greater than or equal to 0, got -1."),
        ({"prob": [0.5, 0.5]}, "c.yaml: custom_timesteps needs selected_timesteps and prob of equal length."),
        ({"prob": [0.5, 0.5, 0.5, 0.5]}, "c.yaml: prob must add up to 1, got 2."),
        (
            {"selected_timesteps": [0, 500, 750, 1000]},
            "c.yaml: selected_timesteps must be in (0, 1000], got [0.0, 500.0, 750.0, 1000.0].",
        ),
        ({"unet": {"in_channels": 8}}, "c.yaml: unet_input_channels is 4, but unet.in_channels is 8."),
        ({"vae": {"latent_channels": 16}}, "c.yaml: vae_num_channels is 4, but vae.latent_channels is 16."),
    ],
)
def test_errors_name_the_key_and_what_is_wrong(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(values, where="c.yaml")
    assert str(caught.value) == message


OWN = LBMConfig(bridge_noise_sigma=0.25, unet=lbm_unet_config(TINY), vae=vae_config())


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A small LBM's tensors with no configuration anywhere."""
    path = tmp_path / "model.safetensors"
    save_file(base_tensors(TINY, dtype=torch.bfloat16), path)
    return path


def resolved(path: Path, config_path: Path | None = None) -> LBMConfig:
    with open_checkpoint(path) as checkpoint:
        return resolve_config(checkpoint, config_path=config_path)


class FakeCheckpoint(Checkpoint):
    """Names and shapes without bytes: the real LBM, which no test can hold."""

    def __init__(self, folder: Path, config: LBMConfig, extra: dict[str, object] | None = None) -> None:
        self.path = folder / "model.ckpt"
        self.metadata = {}
        self.extra = extra or {}
        self.specs = {name: TensorSpec(torch.bfloat16, s) for name, s in checkpoint_shapes(config).items()}


def real(**changes: object) -> LBMConfig:
    channels = changes.get("unet_input_channels", 4)
    return LBMConfig.model_validate({"unet": {**LBM_UNET, "in_channels": channels}, "vae": SDXL_VAE, **changes})


def test_the_file_itself_comes_first(weights: Path, tmp_path: Path) -> None:
    save_file(base_tensors(TINY, dtype=torch.bfloat16), weights, metadata=config_to_metadata(OWN))
    write_lbm_yaml(tmp_path, TINY)
    assert resolved(weights) == OWN


def test_the_yaml_beside_the_file_comes_next(weights: Path, tmp_path: Path) -> None:
    write_lbm_yaml(tmp_path, TINY, bridge_noise_sigma=0.125)
    other = write_lbm_yaml(tmp_path / "elsewhere", TINY)
    found = resolved(weights, other)
    assert found.bridge_noise_sigma == 0.125
    assert found.unet_config == lbm_unet_config(TINY)


def test_a_lora_sidecar_is_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "my_lora_config.yaml").write_text("architecture: LBM\n")
    assert config_beside(tmp_path / "model.safetensors") is None
    (tmp_path / "relight.yaml").write_text("channels: [conda-forge]\n")
    assert config_beside(tmp_path / "model.safetensors") is None
    (tmp_path / "relight.yaml").write_text("[")
    assert config_beside(tmp_path / "model.safetensors") is None
    (tmp_path / "relight.yaml").write_text("source_key: source\n")
    assert config_beside(tmp_path / "model.safetensors") == tmp_path / "relight.yaml"
    (tmp_path / "config.yaml").write_text("# made by lbm-lora: configuration of a run\ntrain_folder: pairs\n")
    assert config_beside(tmp_path) == tmp_path / "relight.yaml", "a training run in the folder configures no model"
    (tmp_path / "more.yaml").write_text("source_key: source\n")
    assert config_beside(tmp_path / "model.safetensors") is None
    (tmp_path / "config.yaml").write_text("{}")
    assert config_beside(tmp_path) == tmp_path / "config.yaml"


def test_the_earlier_implementations_ckpt(tmp_path: Path) -> None:
    """Its `config` is LBMConfig as a dict, with LBM's own keys; the YAML that it was made from is `source_config`."""
    held = {
        "name": "LBMConfig", "input_key": "image", "ucg_keys": None, "mask_key": None, "source_key": "source_image",
        "target_key": "source_image_paste", "logit_mean": None, "logit_std": None, "pixel_loss_type": "lpips",
        "selected_timesteps": [250.0, 500.0, 750.0, 1000.0], "prob": [0.25] * 4, "bridge_noise_sigma": 0.02,
    }  # fmt: skip
    source = LBM_YAML | {"unet_input_channels": 8, "bridge_noise_sigma": 0.5, "something_else": 1}
    checkpoint = FakeCheckpoint(tmp_path, real(unet_input_channels=8), {"config": held, "source_config": source})
    found = resolve_config(checkpoint)
    assert found.bridge_noise_sigma == 0.02
    assert found.unet_input_channels == 8
    assert found.target_key == "source_image_paste"


def test_a_state_dict_takes_no_config_of_the_folder_that_one_happens_to_be_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(OWN.model_dump(mode="json")), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    state = open_checkpoint({"denoiser.conv_in.weight": torch.zeros(8, 4, 3, 3)})
    with pytest.raises(ConfigError, match="No section"):
        resolve_config(state)
    assert resolve_config(state, config_path=Path("config.yaml")) == OWN
