"""The configuration of a training run: one YAML file of flat keys, and overrides of it.

Both documented generations of the file are read: with `lora_rank`, `lora_alpha` and `lora_target_modules` (a
new LoRA), and with `lora_weights_path` (one that training continues). Everything that can be said about the keys
alone is checked here, before a model or a picture is read. Relative paths count from the current folder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import model_validator

from lbm_lora.errors import ConfigError
from lbm_lora.train.settings.data import DataSettings
from lbm_lora.train.settings.file import override, parse, read_values
from lbm_lora.train.settings.model import ModelSettings, only_lora
from lbm_lora.train.settings.objective import ObjectiveSettings
from lbm_lora.train.settings.optimizer import OptimizerSettings
from lbm_lora.train.settings.run import RunSettings


class TrainConfig(RunSettings, ObjectiveSettings, OptimizerSettings, ModelSettings, DataSettings):
    """Every key of a training file with its default; the bases are its sections."""

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
        """The whole configuration with its defaults; reading it gives the same again."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def check_files(self) -> None:
        """Look whether the files and folders that a run reads are there.

        Raises:
            ConfigError: one is missing; its key and path are named.
        """
        made = self.backbone_signature is not None  # then the base is made where it is missing
        keys = ["lora_weights_path", "config_path", "lpips_weights", "train_folder", "validation_folder"]
        for key in [*keys, "resume", *([] if made else ["base_model_path"])]:
            path: Path | str | None = getattr(self, key)
            if isinstance(path, Path) and not path.exists():
                raise ConfigError(f"{key}: {path} does not exist. Relative paths count from the current folder.")


def read_train_config(path: Path, overrides: Sequence[tuple[str, str]] = ()) -> TrainConfig:
    """Read a training file.

    Args:
        path: a YAML file of `TrainConfig`'s keys.
        overrides: (key, YAML text) pairs that take the place of the file's values, the last one of a key wins.
            `rank_pattern.ff.net` is the key `ff.net` of `rank_pattern`; `-` and `_` are the same.

    Raises:
        ConfigError: the file cannot be read, a key is unknown (the nearest valid one is named), a value is of the
            wrong type or out of its range, or values do not go together.
    """
    values: dict[str, Any] = read_values(path)
    changed = override(values, overrides)
    if values.get("wandb_project") is not None:
        values.setdefault("logger", "wandb")
    return parse(TrainConfig, values, where=str(path), changed=changed)
