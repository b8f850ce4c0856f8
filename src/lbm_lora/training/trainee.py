"""What trains, a LoRA or the full denoiser, and the file of its result."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import xxhash
from torch import Tensor, nn

from lbm_lora.adapter import FORMAT, AdapterMetadata, save_adapter
from lbm_lora.adapter.metadata import STEP_KEY
from lbm_lora.blocks import is_finite
from lbm_lora.checkpoint import Checkpoint, Fingerprint, SafetensorsWriter, dtype_name, open_checkpoint
from lbm_lora.errors import ConfigError, InputError
from lbm_lora.files import MARK_KEY, TRAINED
from lbm_lora.model.config import LBMConfig
from lbm_lora.model.resolve import config_to_metadata
from lbm_lora.naming import DENOISER_PREFIX, ModuleName
from lbm_lora.training.lora import (
    InitialFactors,
    LiveAdapter,
    export_adapter,
)
from lbm_lora.training.settings import TrainConfig

TRAINING_KEY = "lbm_lora_training"
"""Header entry with the configuration of the training, and its steps."""
_FOLDERS = {"save_ckpt_path", "cache_dir", "train_folder", "validation_folder", "resume"}
"""Keys that locate files and say nothing about what was trained."""

Write = Callable[[Mapping[str, Tensor], int, Path], None]
"""Function of (trainable values, step, path) that writes the result of a step, atomically."""


@dataclass(frozen=True, eq=False)
class FullModel:
    """A fully trainable denoiser: the counterpart of `LiveAdapter` for mode full."""

    denoiser: nn.Module
    initial: ClassVar[Mapping[ModuleName, InitialFactors]] = {}

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Return every parameter by its param name, in the network's order."""
        return dict(self.denoiser.named_parameters())


Trainee = LiveAdapter | FullModel


def result_writer(
    trainee: Trainee, config: TrainConfig, base: Checkpoint, fingerprint: Fingerprint, lbm: LBMConfig, part: str
) -> Write:
    """Return a function that writes the result of a step.

    Args:
        base, fingerprint: the open file of the base, and that of its denoiser.
        part: digest of the part of the run; see `TrainState`.
    """

    def write(values: Mapping[str, Tensor], step: int, path: Path) -> None:
        training = {
            TRAINING_KEY: _json(_facts(config.model_dump(mode="json"), step)),
            STEP_KEY: f"{step} {part}".rstrip(),
        }
        if isinstance(trainee, FullModel):
            metadata = {"format": "pt", MARK_KEY: TRAINED, **config_to_metadata(lbm), **training}
            with SafetensorsWriter(path, base.specs, metadata=metadata) as writer:
                for key, tensor in _tuned_tensors(base, values):
                    writer.write(key, tensor)
        else:
            facts = _counts(trainee) | training
            metadata = AdapterMetadata(FORMAT, fingerprint.digest, fingerprint.packed(), facts=facts)
            save_adapter(export_adapter(trainee, values, metadata), path)

    return write


def _counts(live: LiveAdapter) -> dict[str, str]:
    loras = live.plan.loras
    counts = {
        "lora": len(loras),
        "lora_trained": sum(lora.learns for lora in loras),
        "dense": len({*live.given.dense, *live.plan.dense}),
        "dense_trained": len(live.plan.dense),
    }
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(max((lora.rank for lora in loras if not lora.is_conv), default=0)),
        "ss_network_args": _json({"conv_dim": max((lora.rank for lora in loras if lora.is_conv), default=0)}),
        "lbm_lora_architecture": "latent-bridge-matching",
        "lbm_lora_counts": _json(counts),
    }


def _tuned_tensors(checkpoint: Checkpoint, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield a checkpoint's tensors, in their dtypes: those of the denoiser with the given values."""
    for key, spec in checkpoint.specs.items():
        name = key.removeprefix(DENOISER_PREFIX)
        if not key.startswith(DENOISER_PREFIX) or name not in values:
            yield key, checkpoint.read(key)
            continue
        value = values[name].detach().to("cpu", spec.dtype)
        if not is_finite(value):
            raise ConfigError(
                f"{name} was trained to values beyond the range of the base's dtype, {dtype_name(spec.dtype)}. Train "
                "on a base in bf16 or float."
            )
        yield key, value


def trained_steps(path: Path) -> int | None:
    """Return the number of steps after which a training saved this file; None if no training saved it."""
    try:
        with open_checkpoint(path) as file:
            return int(file.metadata[STEP_KEY].split()[0])
    except (InputError, OSError, LookupError, ValueError):
        return None


def same_settings(values: Mapping[str, object], config: TrainConfig) -> bool:
    """Return whether keys and values, of a state, are those of a configuration, folders aside."""
    return _facts(values, 0) == _facts(config.model_dump(mode="json"), 0)


def part_digest(config: TrainConfig, begins_with: Mapping[str, object]) -> str:
    """Return the digest of the settings of a part of a run, and of what it begins with; equal ones give equal files."""
    settings = _facts(config.model_dump(mode="json"), 0)
    return xxhash.xxh3_64_hexdigest(_json({"settings": settings, **begins_with}).encode())


def _facts(values: Mapping[str, object], step: int) -> dict[str, object]:
    """Return keys and values as recorded in a file, without folders, and the number of optimizer steps."""

    def plain(value: object) -> object:
        if isinstance(value, str) and "/" in value:
            return value.rstrip("/").rpartition("/")[2]
        return [plain(item) for item in value] if isinstance(value, list) else value

    return {"step": step, **{key: plain(value) for key, value in values.items() if key not in _FOLDERS}}


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
