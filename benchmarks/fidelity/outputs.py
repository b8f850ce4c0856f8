"""Compare outputs of the mini model with a LoRA to the tuned model's, on held-out images, in fp32."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lbm_lora import ScaledAdapter, fuse_module, load_adapter, load_model
from lbm_lora.adapter import Adapter, rank_bytes
from lbm_lora.adapter.packed_index import dense_bytes
from lbm_lora.factorize import PACKED
from lbm_lora.fidelity.answers import answer, question
from lbm_lora.fidelity.output_errors import relative_error, typical_error
from lbm_lora.fidelity.points import image_latent
from lbm_lora.imaging.metrics import psnr
from lbm_lora.model.bridge import TRAIN_TIMESTEPS
from lbm_lora.model.build import LBMModel
from lbm_lora.model.schedule import from_source, schedule_of

_MOST_DB = 200.0  # beyond fp32; JSON has no infinity


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Images of one kind to measure on.

    Attributes:
        images: sources.
        size: square root of the pixels to resize them to; by default the model's own.
    """

    images: Sequence[Path]
    size: int | None = None


class HeldOut:
    """Held-out images by kind, the tuned model's outputs for them, and the base in memory.

    Args:
        base, tuned: checkpoints.
        kinds: map from kind to its images.
    """

    def __init__(self, base: Path, tuned: Path, kinds: Mapping[str, Kind]) -> None:
        model = load_model(tuned, dtype=torch.float32)
        self._asked = {name: _Asked(model, kind) for name, kind in kinds.items()}
        self._base = load_model(base, dtype=torch.float32)

    def measure(self, lora: Path | None, kinds: Sequence[str]) -> dict[str, Any]:
        """Return `nbytes` and `matrix_bytes` of a LoRA's file, and the scores of base + LoRA per kind and image:
        `denoiser_psnr`, `image_psnr`, `error_db` and `timesteps`, the error at each timestep. See docs/fidelity.md.
        Without a LoRA: of the base."""
        if lora is None:
            return {kind: self._asked[kind].scores(self._base) for kind in kinds}
        adapter = load_adapter(lora)
        fused = fuse_module(self._base.denoiser, [ScaledAdapter(adapter)])
        found = {kind: self._asked[kind].scores(self._base) for kind in kinds}
        fused.unfuse()
        return {"nbytes": lora.stat().st_size, "matrix_bytes": matrix_bytes(adapter), **found}


class _Asked:
    """The images of a kind, and the tuned model's outputs for them."""

    def __init__(self, model: LBMModel, kind: Kind) -> None:
        schedule = from_source(schedule_of(model.config))
        latents = [image_latent(model, path, size=kind.size) for path in kind.images]
        self._questions = [question(model, latent, schedule) for latent in latents]
        self._answers = [answer(model, asked, (1,)) for asked in self._questions]
        at_source = [wanted.predictions[TRAIN_TIMESTEPS] for wanted in self._answers]
        self._range = float(max(one.max() for one in at_source) - min(one.min() for one in at_source))

    def scores(self, model: LBMModel) -> dict[str, Any]:
        """Return a model's scores, one for each image."""
        found: dict[str, list[float]] = {"denoiser_psnr": [], "image_psnr": [], "error_db": []}
        timesteps: dict[str, list[float]] = {}
        for asked, wanted in zip(self._questions, self._answers, strict=True):
            given = answer(model, asked, (1,))
            change = given.predictions[TRAIN_TIMESTEPS].double() - wanted.predictions[TRAIN_TIMESTEPS].double()
            errors = {at: relative_error(given.predictions[at], output) for at, output in wanted.predictions.items()}
            error = typical_error([*errors.values()], (point.probability for point in asked.points))
            found["denoiser_psnr"].append(-_decibel(float(change.square().mean().sqrt()) / self._range))
            found["image_psnr"].append(_bounded(psnr(given.images[1], wanted.images[1])))
            found["error_db"].append(_decibel(error))
            for at, one in errors.items():
                timesteps.setdefault(f"{at:g}", []).append(_decibel(one))
        return {**found, "timesteps": timesteps}


def matrix_bytes(adapter: Adapter) -> int:
    """Return the bytes of all stored matrix values: factors, and dense deltas with two or more dimensions."""
    dense = {name: delta for name, delta in adapter.dense.items() if delta.ndim > 1}
    if adapter.dtype == PACKED:
        vectors = (name for name in adapter.dense if name not in dense)
        return adapter.nbytes - sum(
            dense_bytes(tuple(adapter.dense[name].shape), adapter.grids[name].widths[0]) for name in vectors
        )
    factors = sum(
        module.rank * rank_bytes(module.shape, adapter.dtype or module.up.dtype) for module in adapter.modules.values()
    )
    return factors + sum(delta.nbytes for delta in dense.values())


def _decibel(ratio: float) -> float:
    return _bounded(20 * math.log10(ratio) if ratio else -math.inf)


def _bounded(decibel: float) -> float:
    return round(min(max(decibel, -_MOST_DB), _MOST_DB), 3)
