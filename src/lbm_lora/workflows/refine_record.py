"""Record a refinement: the values that must match before it can be resumed, and the metadata of its LoRAs."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xxhash

from lbm_lora.adapter import Adapter, AdapterMetadata, precision_name
from lbm_lora.adapter.metadata import ERRORS_KEY, REFINEMENT_KEY, rounded
from lbm_lora.apply import check_base, check_fit
from lbm_lora.checkpoint import Checkpoint, TensorSpec, bytes_of, fingerprint
from lbm_lora.configs.refine import RefineConfig
from lbm_lora.errors import WrongBaseError
from lbm_lora.model.device import resolve_device

if TYPE_CHECKING:
    from lbm_lora.refinement.distill import DistillResult

_STEPS = {"adam": 200, "joint": 6}


def steps_of(config: RefineConfig) -> int:
    """Return the given steps, or the method's default."""
    return _STEPS[config.method] if config.steps is None else config.steps


def identity_of(
    config: RefineConfig,
    base: Checkpoint,
    tuned: Checkpoint,
    adapter: Adapter,
    dtype: torch.dtype,
    images: Sequence[str],
    learnt: int,
) -> dict[str, Any]:
    """Return the values that must match for a run to resume; the LoRA is checked against base and tuned model.

    Args:
        dtype: of the LoRA that is written.
        images: digests of all images.
        learnt: how many of them, the first ones, are trained on; the others are measured on.
    """
    from lbm_lora.model.resolve import around, resolve_config

    component = base.component()
    check_fit(adapter, component.shapes)
    before, after = fingerprint(component), fingerprint(tuned.component())
    check_base(adapter, component, found=before)
    if adapter.metadata.tuned_fingerprint not in ("", after.digest):
        raise WrongBaseError(f"{adapter.label} was extracted from another tuned model than {tuned.path}. Give its own.")
    settings = {key: value for key, value in asdict(config).items() if not isinstance(value, Path)}
    for key in ("images", "held_images", "also", "overwrite", "save_precision"):
        del settings[key]
    # a default that is spelt out changes nothing
    chosen = {"steps": steps_of(config), "device": resolve_device(config.device).type, "dtype": precision_name(dtype)}
    lbm = resolve_config(base, config_path=config.config_path)
    inputs = {
        "base": before.digest,
        "around": around(base, lbm),
        "tuned": after.digest,
        "lora": _digest(adapter),
        "pictures": xxhash.xxh3_128_hexdigest(f"{' '.join(images[:learnt])}, {' '.join(images[learnt:])}".encode()),
    }
    return json.loads(json.dumps({**settings, **chosen, **inputs}))


def _digest(adapter: Adapter) -> str:
    """Return the digest of what an adapter holds, which need not be what its file holds."""
    digest = xxhash.xxh3_128()
    for name, module in sorted(adapter.modules.items()):
        digest.update(f"{name} {module.alpha}\n".encode())
        _add(digest, module.down)
        _add(digest, module.up)
    for name, delta in sorted(adapter.dense.items()):
        digest.update(f"{name}\n".encode())
        _add(digest, delta)
    return digest.hexdigest()


def _add(digest: xxhash.xxh3_128, tensor: torch.Tensor) -> None:
    digest.update(f"{TensorSpec.of(tensor)}\n".encode())
    digest.update(bytes_of(tensor))


def metadata_of(
    config: RefineConfig, given: Adapter, dtype: torch.dtype, learnt_images: Sequence[str], distilled: "DistillResult"
) -> AdapterMetadata:
    """Return the given LoRA's metadata, with its outdated weight errors replaced by output errors."""
    from lbm_lora.imaging.digests import packed

    facts = {
        "method": config.method,
        "steps": steps_of(config),
        "batch_size": config.batch_size,
        **({"learning_rate": config.learning_rate} if config.method == "adam" else {}),
        "seed": config.seed,
        "mirror": config.mirror,
        "dtype": precision_name(dtype),
        "lora": config.lora_path.name,
        "images": packed(learnt_images),
        "step": distilled.step,
        "error_before": rounded(distilled.before.typical),
        "error_after": rounded(distilled.after.typical),
        "worst_error_before": rounded(distilled.before.worst),
        "worst_error_after": rounded(distilled.after.worst),
    }
    kept = {key: value for key, value in given.metadata.facts.items() if key != ERRORS_KEY}
    kept[REFINEMENT_KEY] = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return replace(given.metadata, facts=kept)
