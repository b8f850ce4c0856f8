"""Compare outputs of the mini model with a LoRA to the tuned model's, on held-out images, in fp32."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lbm_lora import ScaledAdapter, fuse_module, load_adapter, load_model
from lbm_lora.adapter import Adapter, rank_bytes
from lbm_lora.fidelity.answers import answer, question
from lbm_lora.fidelity.output_errors import relative_error, typical_error
from lbm_lora.fidelity.points import image_latent
from lbm_lora.imaging.metrics import psnr
from lbm_lora.model.bridge import TRAIN_TIMESTEPS
from lbm_lora.model.schedule import from_source, schedule_of

_MOST_DB = 200.0  # beyond fp32; JSON has no infinity


class HeldOut:
    """Held-out images, the tuned model's outputs for them, and the base in memory.

    Args:
        base, tuned: checkpoints.
        images: source images.
    """

    def __init__(self, base: Path, tuned: Path, images: Sequence[Path]) -> None:
        model = load_model(tuned, dtype=torch.float32)
        schedule = from_source(schedule_of(model.config))
        self._questions = [question(model, image_latent(model, path), schedule) for path in images]
        self._answers = [answer(model, asked, (1,)) for asked in self._questions]
        at_source = torch.stack([wanted.predictions[TRAIN_TIMESTEPS] for wanted in self._answers])
        self._range = float(at_source.max() - at_source.min())
        self._base = load_model(base, dtype=torch.float32)

    def measure(self, lora: Path | None) -> dict[str, Any]:
        """Return `nbytes` and `matrix_bytes` of a LoRA's file, and the scores of base + LoRA per image:
        `denoiser_psnr`, `image_psnr`, `error_db`, see docs/fidelity.md. Without a LoRA: of the base."""
        if lora is None:
            return self._scores()
        adapter = load_adapter(lora)
        fused = fuse_module(self._base.denoiser, [ScaledAdapter(adapter)])
        found = self._scores()
        fused.unfuse()
        return {"nbytes": lora.stat().st_size, "matrix_bytes": matrix_bytes(adapter), **found}

    def _scores(self) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {"denoiser_psnr": [], "image_psnr": [], "error_db": []}
        for asked, wanted in zip(self._questions, self._answers, strict=True):
            given = answer(self._base, asked, (1,))
            change = given.predictions[TRAIN_TIMESTEPS].double() - wanted.predictions[TRAIN_TIMESTEPS].double()
            errors = [relative_error(given.predictions[at], output) for at, output in wanted.predictions.items()]
            error = typical_error(errors, (point.probability for point in asked.points))
            found["denoiser_psnr"].append(-_decibel(float(change.square().mean().sqrt()) / self._range))
            found["image_psnr"].append(_bounded(psnr(given.images[1], wanted.images[1])))
            found["error_db"].append(_decibel(error))
        return found


def matrix_bytes(adapter: Adapter) -> int:
    """Return the bytes of all stored matrix values: factors, and dense deltas with two or more dimensions."""
    factors = sum(
        module.rank * rank_bytes(module.shape, adapter.dtype or module.up.dtype) for module in adapter.modules.values()
    )
    return factors + sum(delta.nbytes for delta in adapter.dense.values() if delta.ndim > 1)


def _decibel(ratio: float) -> float:
    return _bounded(20 * math.log10(ratio) if ratio else -math.inf)


def _bounded(decibel: float) -> float:
    return round(min(max(decibel, -_MOST_DB), _MOST_DB), 3)
