"""Configuration of a training run: one YAML file of flat keys, plus overrides.

Both documented generations of the file are read: with `lora_rank`, `lora_alpha` and `lora_target_modules` (a new LoRA),
and with `lora_weights_path` (a LoRA to continue). Everything that depends only on the keys is checked here, before a
model or an image is read. Relative paths start from the current folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from lbm_lora.errors import ConfigError, not_there
from lbm_lora.files import MARK
from lbm_lora.text import dump_yaml
from lbm_lora.training.settings.data_keys import DataSettings
from lbm_lora.training.settings.learning_keys import ObjectiveSettings, OptimizerSettings
from lbm_lora.training.settings.model_keys import ModelSettings, only_lora
from lbm_lora.training.settings.training_file import Count, Section, Text, override, parse, read_values

STATE_NAME = "resume.pt"
"""The state of a run, in its folder."""
RUN_LINE = f"# {MARK}: configuration of a run\n"
"""First line of the configuration in a run's folder."""


def _precision(value: object) -> object:
    return "32" if value == 32 else value


def _resume(value: object) -> object:
    """Check `resume` with one message instead of one for each side of the union."""
    if isinstance(value, str | Path) and str(value):
        return value
    raise ValueError("Input should be 'auto', 'never' or a file")


Resume = Annotated[Literal["auto", "never"] | Path, Field(union_mode="left_to_right"), BeforeValidator(_resume)]


class RunSettings(Section):
    """Devices, outputs, and how often they are written."""

    device: Text = "auto"
    """Train on this device: auto (CUDA if available, else the CPU), cpu, cuda, cuda:N or mps (untested)."""
    devices: Annotated[Count, Field(le=64)] = 1
    """Processes per machine, each on its own device."""
    num_nodes: Annotated[Count, Field(le=1024)] = 1
    """Number of machines."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """Strategy of Lightning for several processes."""
    precision: Annotated[Literal["bf16-mixed", "32"], BeforeValidator(_precision)] = "bf16-mixed"
    """Precision of the computation. Trainable weights are always fp32."""
    base_dtype: Literal["float", "fp16", "bf16"] = "bf16"
    """Precision of the frozen weights."""
    save_ckpt_path: Path = Path("./checkpoints_lora")
    """Folder for the LoRA, the state to resume from, the logs and the validation images."""
    save_interval: Count = 1000
    """Optimizer steps between saves."""
    keep_last: Count | None = None
    """Number of saves to keep, besides the last and the best. Default: all."""
    log_interval: Count = 100
    """Optimizer steps between log lines."""
    validation_interval: Count | None = None
    """Optimizer steps between validations. Default: `save_interval`."""
    validation_samples: Count = 16
    """Pairs per validation."""
    num_steps: tuple[Annotated[Count, Field(le=1000)], ...] = (1, 2, 4)
    """Denoiser calls per validation image."""
    best_metric: Literal["loss", "psnr", "ssim", "lpips"] = "loss"
    """Metric that selects the best save. All but loss need validation pairs."""
    wandb_project: Text | None = None
    """Project of Weights & Biases to log to. In a file, it stands for `logger: wandb`."""
    logger: Literal["tensorboard", "wandb", "csv", "none"] = "tensorboard"
    """Where curves are logged, besides the plain log."""
    resume: Resume = "auto"
    """auto: resume if `save_ckpt_path` holds a state. never: start from scratch. FILE: resume from this state."""

    @model_validator(mode="after")
    def _check_run(self) -> "RunSettings":
        if self.wandb_project is not None and self.logger != "wandb":
            raise ValueError(f"wandb_project needs logger wandb, but it is {self.logger}")
        if self.logger == "wandb" and self.wandb_project is None:
            raise ValueError("logger wandb needs wandb_project")
        if self.devices > 1 and ":" in self.device:
            raise ValueError(f"device {self.device} is a single device, but devices is {self.devices}")
        if not self.num_steps:
            raise ValueError("num_steps is empty. Give at least one, as in [1, 2, 4]")
        return self


class TrainConfig(RunSettings, ObjectiveSettings, OptimizerSettings, ModelSettings, DataSettings):
    """Every key of a training file, with its default; the base classes are its sections."""

    @model_validator(mode="after")
    def _check_sections(self) -> "TrainConfig":
        if self.lora_plus_ratio is not None and self.mode == "full":
            raise ValueError(only_lora("lora_plus_ratio"))
        if self.best_metric != "loss" and not self.has_validation:
            raise ValueError(
                f"best_metric {self.best_metric} needs validation pairs. Give validation_shards or validation_folder"
            )
        return self

    def to_yaml(self) -> str:
        """Return the configuration as YAML with all defaults; reading it gives the same configuration."""
        return dump_yaml(self.model_dump(mode="json"))

    def check_files(self) -> None:
        """Check that the files and folders that a run reads exist."""
        keys = ["lora_weights_path", "config_path", "lpips_weights", "train_folder", "validation_folder"]
        if self.backbone_signature is None:  # else a missing base is created
            keys.append("base_model_path")
        if not (self.save_ckpt_path / STATE_NAME).exists():  # else the run goes on from its own state
            keys.append("resume")
        for key in keys:
            path: Path | str | None = getattr(self, key)
            if isinstance(path, Path) and not path.exists():
                raise ConfigError(f"{key}: {not_there(path)} Relative paths start from the current folder.")


LIST_KEYS = frozenset(name for name, key in TrainConfig.model_fields.items() if "tuple[" in str(key.annotation))
"""Keys whose value is a list."""


def read_train_config(
    config: Path | str | Mapping[str, Any] | None, keys: Mapping[str, Any] | None = None, *, is_typed: bool = False
) -> TrainConfig:
    """Return the configuration that a training file, or a mapping of its keys, stands for.

    Args:
        keys: values that take precedence; `rank_pattern.ff.net` is the key `ff.net` of `rank_pattern`.
        is_typed: they are from the command line. From Python, one value stands for a list of it, and a dtype of torch
            for its name.
    """
    is_file = isinstance(config, str | Path)
    values = read_values(Path(config)) if isinstance(config, str | Path) else dict(config or {})
    given = keys or {}
    changed = override(values, given if is_typed else {key: _plain(key, value) for key, value in given.items()})
    if values.get("wandb_project") is not None:
        values.setdefault("logger", "wandb")
    return parse(TrainConfig, values, where=str(config) if is_file else "train", changed=changed if is_typed else ())


def _plain(key: str, value: Any) -> Any:
    if key == "base_dtype":
        name = str(value).removeprefix("torch.")
        return {"float16": "fp16", "bfloat16": "bf16", "float32": "float", "fp32": "float"}.get(name, name)
    is_one = isinstance(value, str | Path | int | float) and not isinstance(value, bool)
    return [value] if is_one and key in LIST_KEYS else value
