"""LBM's configuration: the keys of its config.yaml, with their defaults.

Two optional sections, `unet` and `vae`, are our additions: diffusers configurations of the networks, for models
of other widths than LBM's.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lbm_lora.errors import ConfigError
from lbm_lora.missing_path import not_there
from lbm_lora.model.constants import SDXL_SIGNATURE
from lbm_lora.plain_text import TextError, parse_yaml, read_text

# Keys of LBM's own training files and of the configuration that it pickles. They do not describe the model.
_LEFT_ALONE = frozenset({
    "name", "input_key", "ucg_keys", "prediction_type", "controlnet_input_key", "adapter_input_key", "guidance_scale",
    "train_shards", "validation_shards", "batch_size", "learning_rate", "learning_rate_scheduler",
    "learning_rate_scheduler_kwargs", "optimizer", "optimizer_kwargs", "num_steps", "wandb_project", "log_interval",
    "save_interval", "save_ckpt_path", "max_epochs", "resume_from_checkpoint", "path_config",
})  # fmt: skip


class LBMConfig(BaseModel):
    """Keys of LBM's config.yaml with their defaults, and the two sections for networks of other widths."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone_signature: str = SDXL_SIGNATURE
    """Hub id, folder or file of the backbone; a relative path starts from the folder of the config.yaml."""
    vae_num_channels: int = Field(default=4, ge=1)
    """Channels of a latent: the outputs of the denoiser."""
    unet_input_channels: int = Field(default=4, ge=1)
    """Input channels of the denoiser: those of a latent, and those of conditioning images."""
    conditioning_images_keys: tuple[str, ...] = ()
    conditioning_masks_keys: tuple[str, ...] = ()
    source_key: str = "source_image"
    target_key: str = "target_image"
    mask_key: str | None = None
    latent_loss_weight: float = 1.0
    latent_loss_type: Literal["l2", "l1"] = "l2"
    pixel_loss_type: Literal["l2", "l1", "lpips"] = "lpips"
    pixel_loss_weight: float = 10.0
    pixel_loss_max_size: int = 512
    timestep_sampling: Literal["uniform", "log_normal", "custom_timesteps"] = "custom_timesteps"
    logit_mean: float | None = None
    logit_std: float | None = None
    selected_timesteps: tuple[float, ...] | None = (250.0, 500.0, 750.0, 1000.0)
    """The trained timesteps, each in (0, 1000]."""
    prob: tuple[float, ...] | None = (0.25, 0.25, 0.25, 0.25)
    bridge_noise_sigma: float = Field(default=0.005, ge=0)
    unet: dict[str, Any] | None = None
    """diffusers configuration of the denoiser."""
    vae: dict[str, Any] | None = None
    """diffusers configuration of the VAE."""

    @model_validator(mode="after")
    def _check(self) -> "LBMConfig":
        if self.timestep_sampling == "custom_timesteps":
            if not self.selected_timesteps or not self.prob or len(self.selected_timesteps) != len(self.prob):
                raise ValueError("custom_timesteps needs selected_timesteps and prob of equal length")
            if any(not 0 < t <= 1000 for t in self.selected_timesteps):
                raise ValueError(f"selected_timesteps must be in (0, 1000], got {list(self.selected_timesteps)}")
            if abs(sum(self.prob) - 1) > 1e-6:
                raise ValueError(f"prob must add up to 1, got {sum(self.prob):g}")
        _agree("unet_input_channels", self.unet_input_channels, "unet", self.unet, "in_channels")
        _agree("vae_num_channels", self.vae_num_channels, "unet", self.unet, "out_channels")
        _agree("vae_num_channels", self.vae_num_channels, "vae", self.vae, "latent_channels")
        return self

    @property
    def unet_config(self) -> dict[str, Any]:
        """Return the denoiser's diffusers configuration."""
        return self._section("unet")

    @property
    def vae_config(self) -> dict[str, Any]:
        """Return the VAE's diffusers configuration."""
        return self._section("vae")

    def _section(self, name: Literal["unet", "vae"]) -> dict[str, Any]:
        section = self.unet if name == "unet" else self.vae
        if section is None:
            raise ConfigError(f"the configuration has no section '{name}'. Add the diffusers config of that network.")
        return section


def parse_config(values: Mapping[str, Any], *, where: str) -> LBMConfig:
    """Parse a mapping of LBM's keys into a configuration."""
    valid = LBMConfig.model_fields
    known = {key: value for key, value in values.items() if key in valid}
    for key in values:
        if key not in valid and key not in _LEFT_ALONE:
            near = get_close_matches(str(key), valid, n=1, cutoff=0.5)
            hint = f"Did you mean '{near[0]}'?" if near else f"Valid keys: {', '.join(valid)}."
            raise ConfigError(f"{where}: unknown key '{key}'. {hint}")
    try:
        return LBMConfig.model_validate(known)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(
            f"{where}: {key}: {message}, got {first['input']!r}." if key else f"{where}: {message}."
        ) from None


def read_config(path: Path) -> LBMConfig:
    """Read a config.yaml."""
    return parse_config(read_yaml(path), where=str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file's top-level mapping, without tags that build Python objects."""
    try:
        values = parse_yaml(read_text(path))
    except FileNotFoundError:
        raise ConfigError(not_there(path, (".yaml", ".yml"))) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except TextError as error:
        raise ConfigError(f"{path} {error}.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}, not a mapping of keys.")
    return cast(dict[str, Any], values)


def _agree(key: str, value: int, section: str, config: dict[str, Any] | None, inner: str) -> None:
    if config is not None and config.get(inner, value) != value:
        raise ValueError(f"{key} is {value}, but {section}.{inner} is {config[inner]}")
