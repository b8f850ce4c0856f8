"""A trained LoRA as an adapter relative to the original base, and a fully trained denoiser as a checkpoint."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lbm_lora.adapter import FORMAT, Adapter, AdapterMetadata, LoraModule
from lbm_lora.checkpoint import Checkpoint, Fingerprint, SafetensorsWriter
from lbm_lora.factorize import rank_bound
from lbm_lora.model.config import LBMConfig
from lbm_lora.model.resolve import config_to_metadata
from lbm_lora.naming import DENOISER_PREFIX
from lbm_lora.train.config import TrainConfig
from lbm_lora.train.inject import DOWN, UP, LiveAdapter, Origin
from lbm_lora.train.plan import PlannedLora

_FOLDERS = {"save_ckpt_path", "cache_dir", "train_folder", "validation_folder", "resume"}
"""Keys that say where something lies, and nothing about what was trained."""


def export_adapter(live: LiveAdapter, values: Mapping[str, Tensor], metadata: AdapterMetadata) -> Adapter:
    """The whole adapter, all that acts in the forward pass, in fp32.

    Modules and dense deltas that do not learn have the very values of the file that they come from.

    Args:
        values: of `live.parameters`, by name: those of now, or an average.
    """
    modules = {lora.name: _module(lora, live, values) for lora in live.plan.loras}
    dense = {name: delta.float() for name, delta in live.given.dense.items()}
    dense |= {name: _whole(values[name]) - live.base[name].cpu().float() for name in live.plan.dense}
    return Adapter(modules, dense, metadata, DENOISER_PREFIX)


def adapter_metadata(base: Fingerprint, live: LiveAdapter, config: TrainConfig, step: int) -> AdapterMetadata:
    """What a trained adapter says of itself: its base, its ranks, and the configuration, files without folders."""
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
        "lbm_lora_training": _json(training_facts(config, step)),
    }
    return AdapterMetadata(FORMAT, base.digest, base.packed(), facts=facts)


def training_facts(config: TrainConfig, step: int) -> dict[str, object]:
    """The configuration as a file carries it, without folders, and the optimizer steps that were taken."""
    values = config.model_dump(mode="json", exclude=_FOLDERS)
    return {"step": step, **{key: _without_folders(value) for key, value in values.items()}}


def write_tuned(
    path: Path, checkpoint: Checkpoint, config: LBMConfig, values: Mapping[str, Tensor], facts: Mapping[str, object]
) -> None:
    """Write a checkpoint whose denoiser has the given values; all else is the base's, byte for byte.

    Tensors keep the base's dtype, and the file its configuration, so that it is read like the base.

    Args:
        values: param name -> value, for every parameter that was trained.
        facts: about the training, for the header.
    """
    metadata = {"format": "pt", **config_to_metadata(config), "lbm_lora_training": _json(facts)}
    with SafetensorsWriter(path, checkpoint.specs, metadata=metadata) as writer:
        for key, tensor in _tuned_tensors(checkpoint, values):
            writer.write(key, tensor)


def _tuned_tensors(checkpoint: Checkpoint, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for key, spec in checkpoint.specs.items():
        name = key.removeprefix(DENOISER_PREFIX)
        is_trained = key.startswith(DENOISER_PREFIX) and name in values
        yield key, _whole(values[name]).to(spec.dtype) if is_trained else checkpoint.read(key)


def _module(lora: PlannedLora, live: LiveAdapter, values: Mapping[str, Tensor]) -> LoraModule:
    """One module of the file."""
    if not lora.learns:
        given = live.given.modules[lora.name]
        return LoraModule(lora.name, given.down.float(), given.up.float(), given.alpha)
    module = LoraModule(lora.name, _whole(values[lora.name + DOWN]), _whole(values[lora.name + UP]), lora.alpha)
    origin = live.origins.get(lora.name)
    return module if origin is None else _from_original(module, origin)


def _from_original(module: LoraModule, origin: Origin) -> LoraModule:
    """The same module relative to the weight that its origin was taken out of.

    scaling * (up @ down - up0 @ down0) has at most twice the rank. Where that is no less than what the matrix can
    have, the delta itself is one factor and the identity the other.
    """
    rank = 2 * module.rank
    if rank >= rank_bound(module.shape):
        return _as_identity(module, module.scaling * (module.up @ module.down - origin.up @ origin.down))
    down = torch.cat([module.down, origin.down])
    up = torch.cat([module.up, -origin.up], dim=1)
    return LoraModule(module.name, down, up, module.scaling * rank)


def _as_identity(module: LoraModule, delta: Tensor) -> LoraModule:
    rows, columns = delta.shape
    size = min(rows, columns)
    up, down = (torch.eye(size), delta) if rows <= columns else (delta, torch.eye(size))
    return LoraModule(module.name, down, up, float(size))


def _whole(value: Tensor) -> Tensor:
    """fp32 on the CPU, apart from the parameter that goes on learning."""
    return value.detach().to("cpu", torch.float32, copy=True)


def _without_folders(value: object) -> object:
    """Paths and addresses without what is in front of the last slash, since a file says nothing of folders."""
    if isinstance(value, str) and "/" in value:
        return value.rstrip("/").rpartition("/")[2]
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return value


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
