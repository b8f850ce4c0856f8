"""What a LoRA of the mini model gives back: its outputs against the tuned model's on held-out pictures, in fp32."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lbm_lora.adapter import Adapter, load_adapter, rank_bytes
from lbm_lora.apply import ScaledAdapter, fuse_module
from lbm_lora.calibrate import schedule_of
from lbm_lora.imaging.files import read_image
from lbm_lora.imaging.metrics import psnr
from lbm_lora.infer.comparison import Answer, Question, answer, question, relative_error, trained_timesteps
from lbm_lora.infer.pipeline import encode_sources, to_model_size
from lbm_lora.model.bridge import TRAIN_TIMESTEPS
from lbm_lora.model.build import load_model

_STEPS = 1


class Held:
    """Held-out pictures, what the tuned model makes of them, and the base in memory.

    Args:
        base, tuned: checkpoints.
        pictures: sources.
    """

    def __init__(self, base: Path, tuned: Path, pictures: Sequence[Path]) -> None:
        self.names = [path.name for path in pictures]
        model = load_model(tuned, dtype=torch.float32)
        timesteps = trained_timesteps(model.config)
        self._probabilities = dict(schedule_of(model.config))
        latents = [encode_sources(model, to_model_size(model, read_image(path))) for path in pictures]
        self._questions: list[Question] = [question(model, latent, timesteps) for latent in latents]
        self._wanted: list[Answer] = [answer(model, asked, (_STEPS,)) for asked in self._questions]
        first = torch.stack([wanted.predictions[TRAIN_TIMESTEPS] for wanted in self._wanted])
        self._range = float(first.max() - first.min())
        self._base = load_model(base, dtype=torch.float32)

    def measure(self, path: Path | None) -> dict[str, Any]:
        """Per picture: PSNR of the denoiser's one-step output (over the range of the tuned model's outputs) and of the
        decoded picture, dB; the relative error of the output in dB, as the mean over the trained timesteps by their
        probability: what extraction predicts.

        Args:
            path: of a LoRA; None is the base alone.
        """
        if path is None:
            return self._outputs()
        adapter = load_adapter(path)
        fused = fuse_module(self._base.denoiser, [ScaledAdapter(adapter)])
        found = self._outputs()
        fused.unfuse()
        return {"nbytes": path.stat().st_size, "matrix_bytes": matrix_bytes(adapter), **found}

    def _outputs(self) -> dict[str, Any]:
        denoiser: list[float] = []
        pictures: list[float] = []
        errors: list[float] = []
        for asked, wanted in zip(self._questions, self._wanted, strict=True):
            found = answer(self._base, asked, (_STEPS,))
            at_source = found.predictions[TRAIN_TIMESTEPS], wanted.predictions[TRAIN_TIMESTEPS]
            denoiser.append(_finite(self._psnr(*at_source)))
            pictures.append(_finite(psnr(found.images[_STEPS], wanted.images[_STEPS])))
            decibels = [
                probability * _decibel(relative_error(found.predictions[timestep], wanted.predictions[timestep]))
                for timestep, probability in self._probabilities.items()
            ]
            errors.append(round(math.fsum(decibels), 3))
        return {"denoiser_psnr": denoiser, "picture_psnr": pictures, "error_db": errors}

    def _psnr(self, found: Tensor, wanted: Tensor) -> float:
        mean = float((found.double() - wanted.double()).square().mean())
        return 10 * math.log10(self._range**2 / mean) if mean else math.inf


def matrix_bytes(adapter: Adapter) -> int:
    """Of the stored values of all matrices: factors, and dense deltas of two and more dimensions."""
    factors = sum(
        module.rank * rank_bytes(module.shape, adapter.dtype or module.up.dtype) for module in adapter.modules.values()
    )
    return factors + sum(delta.nbytes for delta in adapter.dense.values() if delta.ndim > 1)


def _decibel(error: float) -> float:
    return _finite(20 * math.log10(error) if error else -math.inf)


def _finite(decibel: float) -> float:
    """JSON has no infinity: 200 dB are beyond fp32."""
    return round(min(max(decibel, -200.0), 200.0), 3)
