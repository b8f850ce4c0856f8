"""LBM's configuration: defaults, what is accepted, and what an error says."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lbm_lora.errors import ConfigError
from lbm_lora.model.config import LBMConfig, parse_config, read_config
from lbm_lora.model.schedule import step_counts
from standins import LBM_YAML


def test_defaults_are_those_of_the_documented_command() -> None:
    config = LBMConfig()
    assert config.backbone_signature == "stabilityai/stable-diffusion-xl-base-1.0"
    assert (config.unet_input_channels, config.vae_num_channels) == (4, 4)
    assert (config.source_key, config.target_key, config.mask_key) == ("source_image", "target_image", None)
    assert (config.latent_loss_type, config.latent_loss_weight) == ("l2", 1.0)
    assert (config.pixel_loss_type, config.pixel_loss_weight) == ("lpips", 10.0)
    assert config.selected_timesteps == (250, 500, 750, 1000)
    assert config.prob == (0.25,) * 4
    assert config.bridge_noise_sigma == 0.005


def test_the_published_yaml_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(LBM_YAML))
    config = read_config(path)
    assert config.target_key == "source_image_paste"
    assert step_counts(config) == (1, 2, 4)


@pytest.mark.parametrize("key", ["train_shards", "batch_size", "ucg_keys", "name", "input_key", "guidance_scale"])
def test_keys_of_lbms_own_training_are_left_alone(key: str) -> None:
    assert parse_config({key: None}, where="c.yaml") == LBMConfig()


def test_uniform_timesteps_allow_any_number_of_steps() -> None:
    values = {"timestep_sampling": "uniform", "selected_timesteps": None, "prob": None}
    assert step_counts(parse_config(values, where="c.yaml")) is None


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


def test_an_unknown_key_unlike_any_lists_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=r"c.yaml: unknown key 'zzz'. Valid keys: backbone_signature, .*, vae\."):
        parse_config({"zzz": 1}, where="c.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n- 2\n", "holds a list, not a mapping of keys."),
        ("a: [", "is not plain YAML: "),
        ("a: !!python/object:os.system {}\n", "is not plain YAML: could not determine a constructor"),
    ],
)
def test_files_that_are_no_yaml_mapping(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert str(caught.value).startswith(f"{path} {message}")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml does not exist\. The folder "):
        read_config(tmp_path / "config.yaml")


def test_a_section_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="the configuration has no section 'unet'"):
        _ = LBMConfig().unet_config
