"""Where a checkpoint's configuration comes from, and that our own files carry it whole."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from lbm_lora.checkpoint import Checkpoint, TensorSpec, open_checkpoint
from lbm_lora.errors import ConfigError
from lbm_lora.model.config import LBMConfig, read_config
from lbm_lora.model.constants import LBM_UNET, SDXL_VAE
from lbm_lora.model.names import checkpoint_shapes
from lbm_lora.model.resolve import METADATA_KEY, ckpt_entries, config_beside, config_to_metadata, resolve_config
from lbm_lora.progress import LbmLoraWarning
from standins import LBM_YAML, TINY, base_tensors, lbm_unet_config, vae_config, write_lbm_yaml

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


def test_a_flag_that_is_not_used_is_said(weights: Path, tmp_path: Path) -> None:
    save_file(base_tensors(TINY, dtype=torch.bfloat16), weights, metadata=config_to_metadata(OWN))
    other = write_lbm_yaml(tmp_path / "elsewhere", TINY)
    with pytest.warns(LbmLoraWarning) as caught:
        assert resolved(weights, other) == OWN
    text = f"{weights} contains its own configuration: config_path {other} is ignored."
    assert [str(one.message) for one in caught] == [text]


def test_a_flag_that_says_the_same_needs_no_word(weights: Path, tmp_path: Path) -> None:
    given = write_lbm_yaml(tmp_path / "elsewhere", TINY)
    made = OWN.model_copy(update=read_config(given).model_dump(exclude={"unet", "vae"}))
    save_file(base_tensors(TINY, dtype=torch.bfloat16), weights, metadata=config_to_metadata(made))
    assert resolved(weights, given) == made


def test_the_yaml_beside_the_file_comes_next(weights: Path, tmp_path: Path) -> None:
    write_lbm_yaml(tmp_path, TINY, bridge_noise_sigma=0.125)
    other = write_lbm_yaml(tmp_path / "elsewhere", TINY)
    found = resolved(weights, other)
    assert found.bridge_noise_sigma == 0.125
    assert found.unet_config == lbm_unet_config(TINY)


def test_then_the_flag(weights: Path, tmp_path: Path) -> None:
    assert resolved(weights, write_lbm_yaml(tmp_path / "elsewhere", TINY)).vae_config == vae_config()


def test_keys_and_sections_may_come_from_two_places(weights: Path, tmp_path: Path) -> None:
    write_lbm_yaml(tmp_path, TINY, networks=False, bridge_noise_sigma=0.125)
    found = resolved(weights, write_lbm_yaml(tmp_path / "elsewhere", TINY))
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


def test_nothing_found_says_where_it_was_looked_for(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(weights)
    assert str(caught.value) == (
        f"{weights}: the configuration of its networks is missing, and its shapes are not those of the real LBM. "
        f"No section `unet` and `vae` found in the file itself, {tmp_path}/config.yaml, config_path (not given). "
        "Add it (a diffusers config) to a config.yaml next to the file, or give such a file with config_path."
    )


def test_stable_diffusion_15_is_recognised(tmp_path: Path) -> None:
    checkpoint = FakeCheckpoint(tmp_path, OWN)
    name = "denoiser.down_blocks.3.resnets.0.conv1.weight"
    checkpoint.specs[name] = TensorSpec(torch.bfloat16, (1280, 1280, 3, 3))
    with pytest.raises(ConfigError, match=r"its shapes are those of Stable Diffusion 1\.5\. No section"):
        resolve_config(checkpoint)


def test_the_real_lbm_needs_no_configuration(tmp_path: Path) -> None:
    assert resolve_config(FakeCheckpoint(tmp_path, real())) == real()


def test_a_wider_conv_in_of_the_real_lbm_is_seen(tmp_path: Path) -> None:
    found = resolve_config(FakeCheckpoint(tmp_path, real(unet_input_channels=8)))
    assert found.unet_input_channels == 8
    assert found.unet_config["in_channels"] == 8


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


def test_a_ckpt_that_we_wrote_before(tmp_path: Path) -> None:
    """Its `config` holds everything, the sections and the backbone included."""
    checkpoint = FakeCheckpoint(tmp_path, real(), {"config": OWN.model_dump(mode="json")})
    assert resolve_config(checkpoint) == OWN


def test_our_ckpt_is_read_by_our_own_entry(tmp_path: Path) -> None:
    assert resolve_config(FakeCheckpoint(tmp_path, real(), ckpt_entries(OWN.model_dump(mode="json")))) == OWN


def test_an_unknown_key_in_a_ckpt_is_an_error(tmp_path: Path) -> None:
    checkpoint = FakeCheckpoint(tmp_path, real(), {"config": {"bridge_sigma": 1}})
    with pytest.raises(ConfigError, match=r"model.ckpt \(entry config\): unknown key 'bridge_sigma'"):
        resolve_config(checkpoint)


def test_damaged_metadata(weights: Path) -> None:
    save_file(base_tensors(TINY), weights, metadata={METADATA_KEY: "{"})
    with pytest.raises(ConfigError, match=r"\(metadata lbm_config\): the configuration is not JSON"):
        resolved(weights)


def test_what_is_written_is_read_back() -> None:
    entries = ckpt_entries(OWN.model_dump(mode="json"))
    assert LBMConfig.model_validate(entries["lbm_config"]) == OWN
    assert LBMConfig.model_validate(json.loads(config_to_metadata(OWN)[METADATA_KEY])) == OWN
    assert yaml.safe_load(yaml.safe_dump(entries)) == entries, "plain types only"


def test_a_folder_is_looked_into(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    write_lbm_yaml(folder, TINY, bridge_noise_sigma=0.125)
    shutil.move(weights, folder)
    assert resolved(folder).bridge_noise_sigma == 0.125


def test_a_state_dict_takes_no_config_of_the_folder_that_one_happens_to_be_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(OWN.model_dump(mode="json")), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    state = open_checkpoint({"denoiser.conv_in.weight": torch.zeros(8, 4, 3, 3)})
    with pytest.raises(ConfigError, match="No section"):
        resolve_config(state)
    assert resolve_config(state, config_path=Path("config.yaml")) == OWN
