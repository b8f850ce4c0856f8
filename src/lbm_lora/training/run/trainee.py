"""Make a model trainable as configured, and write its result: a LoRA, or a tuned checkpoint."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import xxhash
from torch import Tensor, nn

from lbm_lora.adapter import FORMAT, Adapter, AdapterMetadata, load_adapter, save_adapter
from lbm_lora.adapter.metadata import STEP_KEY
from lbm_lora.apply import adapted_to_lbm, check_base, check_fit
from lbm_lora.blocks import is_finite
from lbm_lora.checkpoint import Checkpoint, Component, Fingerprint, SafetensorsWriter, dtype_name, open_checkpoint
from lbm_lora.errors import ConfigError, InputError
from lbm_lora.model.build import LBMModel
from lbm_lora.model.config import LBMConfig
from lbm_lora.model.resolve import config_to_metadata
from lbm_lora.naming import DENOISER_PREFIX, ModuleName
from lbm_lora.ownership import MARK_KEY, TRAINED
from lbm_lora.trainable.export import export_adapter
from lbm_lora.trainable.inject import InitialFactors, LiveAdapter, inject_plan
from lbm_lora.trainable.layout import layout_of
from lbm_lora.trainable.selection import plan_continued, plan_new
from lbm_lora.training.settings.train_config import TrainConfig

TRAINING_KEY = "lbm_lora_training"
"""Header entry with the configuration of the training, and its steps."""
_FOLDERS = {"save_ckpt_path", "cache_dir", "train_folder", "validation_folder", "resume"}
"""Keys that locate files and say nothing about what was trained."""


@dataclass(frozen=True, eq=False)
class FullModel:
    """A fully trainable denoiser: the counterpart of `LiveAdapter` for mode full."""

    denoiser: nn.Module = field(repr=False)
    initial: Mapping[ModuleName, InitialFactors] = field(default_factory=dict[ModuleName, InitialFactors])

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Return every parameter by its param name, in the network's order."""
        return dict(self.denoiser.named_parameters())


Trainee = LiveAdapter | FullModel


def read_given(config: TrainConfig, base: Component, found: Fingerprint) -> Adapter | None:
    """Read the adapter that training continues, checked against the base.

    Args:
        found: the base's fingerprint.

    Raises:
        AdapterError: the file is not an adapter, or does not fit the base.
        WrongBaseError: it was made from another base.
    """
    if config.lora_weights_path is None:
        return None
    adapter = load_adapter(config.lora_weights_path, config.lora_alpha_is, base=base)
    adapter = adapted_to_lbm(adapter, base.shapes).adapter
    check_fit(adapter, base.shapes)
    # no override: a LoRA trained on another base than its own would fit neither
    check_base(adapter, base, allow_other_base=None, found=found)
    return adapter


def make_trainee(
    model: LBMModel,
    config: TrainConfig,
    given: Adapter | None,
    initial: Mapping[ModuleName, InitialFactors] | None = None,
) -> Trainee:
    """Make a new model's denoiser trainable as configured.

    Args:
        given: the adapter that training continues.
        initial: initial factors of the resumed run.

    Raises:
        InputError: a subclass that fits the cause; see `plan_new` and `plan_continued`.
    """
    denoiser: nn.Module = model.denoiser
    if config.mode == "full":
        return train_everything(denoiser)
    layout = layout_of(denoiser)
    plan = plan_new(layout, config) if given is None else plan_continued(layout, config, given)
    return inject_plan(
        denoiser,
        plan,
        given=given,
        init=config.init_lora,
        dropout=config.lora_dropout,
        seed=config.seed,
        initial=initial,
    )


def train_everything(denoiser: nn.Module) -> FullModel:
    """Make all parameters trainable in fp32, as copies independent of their file."""
    for parameter in denoiser.parameters():
        parameter.data = parameter.data.float().clone()
        parameter.requires_grad_(True)
    return FullModel(denoiser)


@dataclass(frozen=True, kw_only=True, eq=False)
class ResultWriter:
    """Writer of a run's result.

    Attributes:
        base: the open file of the base.
        fingerprint: fingerprint of its denoiser.
        part: digest of the part of the run; see `TrainState`.
    """

    model: LBMModel
    trainee: Trainee
    config: TrainConfig
    base: Checkpoint
    fingerprint: Fingerprint
    part: str = ""

    def __call__(self, values: Mapping[str, Tensor], step: int, path: Path) -> None:
        """Write the trainable values after a step, atomically."""
        if isinstance(self.trainee, FullModel):
            facts = training_facts(self.config, step)
            write_tuned(path, self.base, self.model.config, values, facts, part=self.part)
        else:
            metadata = adapter_metadata(self.fingerprint, self.trainee, self.config, step, self.part)
            save_adapter(export_adapter(self.trainee, values, metadata), path)


def adapter_metadata(
    base: Fingerprint, live: LiveAdapter, config: TrainConfig, step: int, part: str = ""
) -> AdapterMetadata:
    """Return a trained adapter's metadata: its base, its ranks, and the configuration with file names only.

    Args:
        part: digest of the part of the run.
    """
    ranks = [lora.rank for lora in live.plan.loras if not lora.is_conv] or [0]
    conv_ranks = [lora.rank for lora in live.plan.loras if lora.is_conv] or [0]
    counts = {
        "lora": len(live.plan.loras),
        "lora_trained": sum(lora.learns for lora in live.plan.loras),
        "dense": len({*live.given.dense, *live.plan.dense}),
        "dense_trained": len(live.plan.dense),
    }
    facts = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(max(ranks)),
        "ss_network_args": _json({"conv_dim": max(conv_ranks)}),
        "lbm_lora_architecture": "latent-bridge-matching",
        "lbm_lora_counts": _json(counts),
        TRAINING_KEY: _json(training_facts(config, step)),
        STEP_KEY: _step_text(step, part),
    }
    return AdapterMetadata(FORMAT, base.digest, base.packed(), facts=facts)


def has_settings(values: Mapping[str, object], config: TrainConfig) -> bool:
    """Return whether keys and values, of a state, are those of a configuration, folders aside."""
    return _facts(values, 0) == training_facts(config, 0)


def training_facts(config: TrainConfig, step: int) -> dict[str, object]:
    """Return the configuration as recorded in a file, without folders, and the number of optimizer steps."""
    return _facts(config.model_dump(mode="json"), step)


def _facts(values: Mapping[str, object], step: int) -> dict[str, object]:
    return {"step": step, **{key: _without_folders(value) for key, value in values.items() if key not in _FOLDERS}}


def trained_steps(path: Path) -> int | None:
    """Return the number of steps after which a training saved this file; None if no training saved it."""
    try:
        with open_checkpoint(path) as file:
            return int(file.metadata[STEP_KEY].split()[0])
    except (InputError, OSError, LookupError, ValueError):
        return None


def is_save_of(path: Path, values: Mapping[str, object], step: int, part: str) -> bool:
    """Return whether a part of a run, with these keys and values, has saved a file after a step."""
    try:
        with open_checkpoint(path) as file:
            held = file.metadata
    except (InputError, OSError):
        return False
    is_step = held.get(STEP_KEY) == _step_text(step, part)
    return is_step and held.get(TRAINING_KEY) == _json(_facts(values, step))


def _step_text(step: int, part: str) -> str:
    """Return the value of `STEP_KEY`: a copy of the file by another command lacks it."""
    return f"{step} {part}".rstrip()


def part_digest(config: TrainConfig, begins_with: Mapping[str, object]) -> str:
    """Return the digest that names a part of a run. Parts with the same one give the same files.

    Args:
        begins_with: what it depends on, besides its settings.
    """
    return xxhash.xxh3_64_hexdigest(_json({"settings": training_facts(config, 0), **begins_with}).encode())


def write_tuned(
    path: Path,
    checkpoint: Checkpoint,
    config: LBMConfig,
    values: Mapping[str, Tensor],
    facts: Mapping[str, object],
    *,
    part: str = "",
) -> None:
    """Write a checkpoint whose denoiser has the given values; everything else is the base's, byte for byte.

    Tensors keep the base's dtype, and the file keeps its configuration, so that it is read like the base.

    Args:
        values: param name -> value, for every trained parameter.
        facts: facts about the training, for the header, from `training_facts`.
        part: digest of the part of the run.

    Raises:
        ConfigError: a value exceeds the range of the base's dtype.
    """
    training = {TRAINING_KEY: _json(facts), STEP_KEY: _step_text(cast(int, facts["step"]), part)}
    metadata = {"format": "pt", MARK_KEY: TRAINED, **config_to_metadata(config), **training}
    with SafetensorsWriter(path, checkpoint.specs, metadata=metadata) as writer:
        for key, tensor in _tuned_tensors(checkpoint, values):
            writer.write(key, tensor)


def _tuned_tensors(checkpoint: Checkpoint, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
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


def _without_folders(value: object) -> object:
    """Strip paths and addresses to the part after the last slash, since files do not record folders."""
    if isinstance(value, str) and "/" in value:
        return value.rstrip("/").rpartition("/")[2]
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return value


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
