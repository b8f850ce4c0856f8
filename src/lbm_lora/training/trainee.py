"""Make a model trainable as configured, and write its result: a LoRA, or a tuned checkpoint."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import xxhash
from torch import Tensor, nn

from lbm_lora.adapter import FORMAT, Adapter, AdapterMetadata, load_adapter, save_adapter
from lbm_lora.adapter.metadata import STEP_KEY
from lbm_lora.apply import adapted_to_lbm, check_base, check_fit
from lbm_lora.blocks import is_finite
from lbm_lora.checkpoint import Checkpoint, Component, Fingerprint, SafetensorsWriter, dtype_name, open_checkpoint
from lbm_lora.errors import ConfigError, InputError
from lbm_lora.files import MARK_KEY, TRAINED
from lbm_lora.model.build import LBMModel
from lbm_lora.model.config import LBMConfig
from lbm_lora.model.resolve import config_to_metadata
from lbm_lora.naming import DENOISER_PREFIX, ModuleName
from lbm_lora.training.lora import InitialFactors, LiveAdapter, export_adapter, inject_plan
from lbm_lora.training.plan import layout_of, plan_continued, plan_new
from lbm_lora.training.settings.train_config import TrainConfig

TRAINING_KEY = "lbm_lora_training"
"""Header entry with the configuration of the training, and its steps."""
_FOLDERS = {"save_ckpt_path", "cache_dir", "train_folder", "validation_folder", "resume"}
"""Keys that locate files and say nothing about what was trained."""

Write = Callable[[Mapping[str, Tensor], int, Path], None]
"""Function of (trainable values, step, path) that writes the result of a step, atomically."""


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


def read_given(config: TrainConfig, base: Component, fingerprint: Fingerprint) -> Adapter | None:
    """Read the adapter that training continues, checked against the base.

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
    check_base(adapter, base, allow_other_base=None, found=fingerprint)
    return adapter


def make_trainee(
    model: LBMModel, config: TrainConfig, given: Adapter | None, initial: Mapping[ModuleName, InitialFactors] | None
) -> Trainee:
    """Make a new model's denoiser trainable as configured.

    Args:
        given: the adapter that training continues.
        initial: initial factors of the resumed run.
    """
    denoiser: nn.Module = model.denoiser
    if config.mode == "full":
        for parameter in denoiser.parameters():
            parameter.data = parameter.data.float().clone()  # independent of the file
            parameter.requires_grad_(True)
        return FullModel(denoiser)
    layout = layout_of(denoiser)
    plan = plan_new(layout, config) if given is None else plan_continued(layout, config, given)
    init, dropout, seed = config.init_lora, config.lora_dropout, config.seed
    return inject_plan(denoiser, plan, given=given, init=init, dropout=dropout, seed=seed, initial=initial)


def result_writer(
    trainee: Trainee, config: TrainConfig, base: Checkpoint, fingerprint: Fingerprint, lbm: LBMConfig, part: str
) -> Write:
    """Return a function that writes the result of a step.

    Args:
        base: the open file of the base.
        fingerprint: of its denoiser.
        lbm: the model's configuration.
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
    """Return the facts about a LoRA's modules, for its header."""
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
    """Return the digest that names a part of a run. Parts with the same one give the same files.

    Args:
        begins_with: what it depends on, besides its settings.
    """
    settings = _facts(config.model_dump(mode="json"), 0)
    return xxhash.xxh3_64_hexdigest(_json({"settings": settings, **begins_with}).encode())


def _facts(values: Mapping[str, object], step: int) -> dict[str, object]:
    """Return keys and values as recorded in a file, without folders, and the number of optimizer steps."""
    return {"step": step, **{key: _without_folders(value) for key, value in values.items() if key not in _FOLDERS}}


def _without_folders(value: object) -> object:
    """Strip paths and addresses to the part after the last slash."""
    if isinstance(value, str) and "/" in value:
        return value.rstrip("/").rpartition("/")[2]
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return value


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
