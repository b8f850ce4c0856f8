"""Record a refinement: the values that must match before it can be resumed, and the metadata of its LoRAs."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xxhash

from lbm_lora.adapter import Adapter, AdapterMetadata, precision_name
from lbm_lora.adapter.metadata import ERRORS_KEY, REFINEMENT_KEY, rounded
from lbm_lora.apply import check_base, check_fit
from lbm_lora.checkpoint import Checkpoint, fingerprint
from lbm_lora.errors import WrongBaseError
from lbm_lora.model.device import resolve_device

if TYPE_CHECKING:
    from lbm_lora.refinement.distill import DistillResult


@dataclass(frozen=True, kw_only=True)
class RefineSettings:
    """Settings of a refinement; see the verb `refine`.

    Attributes:
        steps: of the method.
        config_path: where LBM's configuration is, which is no part of a run's identity.
    """

    method: str
    steps: int
    batch_size: int
    size: int | None
    device: str
    learning_rate: float
    mirror: bool
    timesteps: tuple[float, ...]
    seed: int
    torch_dtype: str
    lora_alpha_is: str
    config_path: Path | None


def identity_of(
    settings: RefineSettings,
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
    chosen = asdict(settings) | {"device": resolve_device(settings.device).type, "dtype": precision_name(dtype)}
    del chosen["config_path"]
    lbm = resolve_config(base, config_path=settings.config_path)
    inputs = {
        "base": before.digest,
        "around": around(base, lbm),
        "tuned": after.digest,
        "lora": adapter.digest(),
        "pictures": xxhash.xxh3_128_hexdigest(f"{' '.join(images[:learnt])}, {' '.join(images[learnt:])}".encode()),
    }
    return json.loads(json.dumps({**chosen, **inputs}))


def metadata_of(
    settings: RefineSettings,
    given: Adapter,
    name: str,
    dtype: torch.dtype,
    learnt_images: Sequence[str],
    distilled: "DistillResult",
) -> AdapterMetadata:
    """Return the given LoRA's metadata, with its outdated weight errors replaced by output errors.

    Args:
        name: file name of the given LoRA.
    """
    from lbm_lora.imaging.digests import packed

    facts = {
        "method": settings.method,
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        **({"learning_rate": settings.learning_rate} if settings.method == "adam" else {}),
        "seed": settings.seed,
        "mirror": settings.mirror,
        "dtype": precision_name(dtype),
        "lora": name,
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
