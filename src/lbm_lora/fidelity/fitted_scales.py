"""Fit the scales of LoRAs to outputs: those with which base + LoRAs comes closest to the tuned model.

How much of each LoRA a mixture needs cannot be read from their weights, so it is measured (as in Prabhakar et al.,
"LoRA Soups", 2024, arXiv 2410.13025). One number per LoRA is a small least squares problem: Gauss-Newton steps, with
the derivatives by differences, each step halved until it helps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lbm_lora.adapter import Adapter
from lbm_lora.apply import ScaledAdapter, fuse_module
from lbm_lora.checkpoint import CheckpointLike
from lbm_lora.fidelity.answers import AnsweredPoint, answered, outputs_at
from lbm_lora.fidelity.output_errors import OutputErrors, relative_error, typical_error
from lbm_lora.fidelity.points import bridge_points, image_latent, image_noise
from lbm_lora.model.build import LBMModel, load_model
from lbm_lora.model.schedule import schedule_of
from lbm_lora.progress import SILENT, Progress

_ROUNDS = 5
_HALVINGS = 3
_DIFFERENCE = 0.05  # of a scale for its derivative: networks in fp32 are smooth at this distance
_WORTH = 0.01  # the least decrease of the squared error for which another round is tried
_REACHED = 1e-10  # squared relative error, 0.001 %, below which there is nothing left to fit
_DIGITS = 4  # significant digits of a scale, so that a user can repeat it
_SAME = 1e-9  # eigenvalues of the normal equations below this share belong to LoRAs that cannot be told apart


@dataclass(frozen=True, kw_only=True)
class FittedScales:
    """Scales found, and the errors of the denoiser's output before and after.

    Attributes:
        factors: what each LoRA's scale is multiplied with.
    """

    factors: tuple[float, ...]
    before: OutputErrors
    after: OutputErrors
    images: int


def fit_scales(
    base: CheckpointLike,
    tuned: CheckpointLike,
    adapters: Sequence[Adapter],
    images: Sequence[Path],
    *,
    config_path: Path | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = SILENT,
) -> FittedScales:
    """Fit one factor per LoRA to the tuned model's outputs at the points of the images' bridges, from 1 on."""
    progress.start(len(images), "running the tuned model")
    model = load_model(tuned, config_path=config_path, device=device, dtype=torch.float32)
    wanted = [point for index, image in enumerate(images) for point in _answers(model, index, image, progress)]
    del model
    model = load_model(base, config_path=config_path, device=device, dtype=torch.float32)
    progress.start(0, "fitting the scales")
    fit = _Fit(model, adapters, wanted, progress)
    start = tuple(1.0 for _ in adapters)
    first = fit.outputs(start)
    best, found = start, first
    for _ in range(_ROUNDS):
        before = fit.squared(found)
        better = fit.step(best, found) if before > _REACHED else None
        if better is None:
            break
        best, found = better
        if fit.squared(found) > (1 - _WORTH) * before:
            break
    return FittedScales(factors=best, before=fit.errors(first), after=fit.errors(found), images=len(images))


def _answers(model: LBMModel, index: int, image: Path, progress: Progress) -> list[AnsweredPoint]:
    latent = image_latent(model, image)
    points = list(bridge_points(model, latent, schedule_of(model.config), image_noise(0, index)))
    progress.advance()
    return answered(model, points)


class _Fit:
    """The outputs of base + LoRAs as a function of the factors."""

    def __init__(
        self, model: LBMModel, adapters: Sequence[Adapter], wanted: Sequence[AnsweredPoint], progress: Progress
    ) -> None:
        self._model, self._adapters, self._wanted, self._progress = model, adapters, wanted, progress
        self._weights = [
            math.sqrt(one.point.probability) / max(float(torch.linalg.vector_norm(one.wanted)), 1e-30) for one in wanted
        ]

    def outputs(self, factors: Sequence[float]) -> list[Tensor]:
        scaled = [ScaledAdapter(adapter, factor) for adapter, factor in zip(self._adapters, factors, strict=True)]
        fused = fuse_module(self._model.denoiser, scaled)
        try:
            return [self._output(one) for one in self._wanted]
        finally:
            fused.unfuse()

    def squared(self, outputs: Sequence[Tensor]) -> float:
        return math.fsum(float(part.double().square().sum()) for part in self._residuals(outputs))

    def step(
        self, factors: tuple[float, ...], outputs: Sequence[Tensor]
    ) -> tuple[tuple[float, ...], list[Tensor]] | None:
        """Return better factors with their outputs; None if the step finds none."""
        residuals, squared = self._residuals(outputs), self.squared(outputs)
        columns: list[list[Tensor]] = []
        for index in range(len(factors)):
            moved = tuple(one + _DIFFERENCE * (at == index) for at, one in enumerate(factors))
            changed = self.outputs(moved)
            columns.append(
                [
                    weight * (after - before) / _DIFFERENCE
                    for weight, after, before in zip(self._weights, changed, outputs, strict=True)
                ]
            )
        gram = torch.tensor([[_dot(one, other) for other in columns] for one in columns], dtype=torch.float64)
        slope = torch.tensor([_dot(one, residuals) for one in columns], dtype=torch.float64)
        full = -(torch.linalg.pinv(gram, rtol=_SAME, hermitian=True) @ slope)
        for halving in range(_HALVINGS):
            tried = tuple(
                float(f"{one + float(change) / 2**halving:.{_DIGITS}g}")
                for one, change in zip(factors, full, strict=True)
            )
            found = self.outputs(tried)
            if self.squared(found) < squared:
                return tried, found
        return None

    def errors(self, outputs: Sequence[Tensor]) -> OutputErrors:
        errors = [relative_error(out, one.wanted) for out, one in zip(outputs, self._wanted, strict=True)]
        typical = typical_error(errors, (one.point.probability for one in self._wanted))
        return OutputErrors(typical=typical, worst=max(errors))

    def _residuals(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        return [
            weight * (out - one.wanted) for weight, out, one in zip(self._weights, outputs, self._wanted, strict=True)
        ]

    def _output(self, one: AnsweredPoint) -> Tensor:
        output = outputs_at(self._model, [one.point]).float()
        self._progress.advance()
        return output


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    pairs = zip(one, other, strict=True)
    return math.fsum(float(torch.dot(a.flatten().double(), b.flatten().double())) for a, b in pairs)
