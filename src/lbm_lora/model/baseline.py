"""Measure how close a base is to a tuned checkpoint, and whether the checkpoint can be tuned from it."""

from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite, sqrt
from statistics import fmean, median
from typing import Literal

import torch
from torch import Tensor

from lbm_lora.blocks import subtract
from lbm_lora.checkpoint import Checkpoint, Component
from lbm_lora.errors import Option, PairingError, listing, plural
from lbm_lora.factorize.measure import Measure, measure_delta
from lbm_lora.model.constants import ITERATIONS_KEY
from lbm_lora.naming import ParamName
from lbm_lora.progress import SILENT, Progress, warn

Band = Literal["EXCELLENT", "GOOD", "WARNING"]

LEAST_COSINE = 0.15
"""Cosine below which a tuned matrix counts as unrelated to the base's: two unrelated matrices of n elements have 0
within about 4 / sqrt(n). A fine-tune that moves a matrix by its own norm has 0.7, by 2.7 times its norm 0.35; the
bundled model, whose residual branches are near 0 in the base, goes down to 0.2."""
MOST_UNRELATED = 0.01
"""Largest share of unrelated matrices in a base: a fine-tune may reinitialise a few layers."""
ORIGIN_KEY = "initialization"
BASE_MARK = "exact_architecture_match"
"""Key for the origin of a base, in the metadata of its `.safetensors` and as an entry of its `.ckpt`."""
_VAE = "vae."
_LEAST_ELEMENTS = 1024  # with which random cosines stay below 0.13, and so below LEAST_COSINE


@dataclass(frozen=True, kw_only=True)
class TensorDistance:
    """Distance between base and tuned for one parameter.

    Attributes:
        mean_abs, max_abs: mean and maximum of |tuned - base|.
        unchanged: share of elements that are equal, in [0, 1].
        relative: norm of tuned - base over the norm of base; inf if the base is 0 and tuned is not.
        cosine: cosine of base and tuned as vectors; 1 if both are 0, 0 if only one is.
        noise_floor: the part of the delta that is storage rounding of tuned: sqrt(sum(ulp^2) / 12) over
            the delta's norm; 0 if nothing changed.
    """

    name: ParamName
    shape: tuple[int, ...]
    mean_abs: float
    max_abs: float
    unchanged: float
    relative: float
    cosine: float
    noise_floor: float

    @property
    def is_unrelated(self) -> bool:
        """Whether a matrix's tuned values are unrelated to the base's. Small tensors are never counted as unrelated."""
        elements = torch.Size(self.shape).numel()
        return len(self.shape) > 1 and elements >= _LEAST_ELEMENTS and self.cosine < LEAST_COSINE


@dataclass(frozen=True, kw_only=True)
class BaselineReport:
    """Measurements of `compare_base`.

    Attributes:
        tensors: every parameter that both have, with equal shapes.
        unmatched: names that only one of them has, or whose shapes differ.
        noise_floor: over all tensors together.
    """

    tensors: tuple[TensorDistance, ...]
    unmatched: tuple[ParamName, ...]
    noise_floor: float

    def __repr__(self) -> str:
        """`<BaselineReport: 1,676 tensors, 0 unmatched>`."""
        return f"<BaselineReport: {plural(len(self.tensors), 'tensor')}, {len(self.unmatched)} unmatched>"

    @property
    def matched(self) -> str:
        """Matched keys as m/total, the documented "Matched denoiser keys"."""
        return f"{len(self.tensors)}/{len(self.tensors) + len(self.unmatched)}"

    @property
    def average_difference(self) -> float:
        """Mean over tensors of mean|tuned - base|, as documented."""
        return fmean(t.mean_abs for t in self.tensors)

    @property
    def maximum_difference(self) -> float:
        """Largest mean|tuned - base| of a tensor, as documented."""
        return max(t.mean_abs for t in self.tensors)

    @property
    def unchanged(self) -> float:
        """Share of all elements that are equal, in [0, 1]."""
        sizes = [torch.Size(t.shape).numel() for t in self.tensors]
        return sum(t.unchanged * size for t, size in zip(self.tensors, sizes, strict=True)) / sum(sizes)

    @property
    def unchanged_tensors(self) -> int:
        """Number of tensors without any change."""
        return sum(t.unchanged == 1 for t in self.tensors)

    @property
    def median_relative(self) -> float:
        """Median over the matrices of ||tuned - base|| / ||base||; about 1.4 for unrelated matrices of equal norm."""
        return median([t.relative for t in self.tensors if len(t.shape) > 1] or [0.0])

    @property
    def band(self) -> Band:
        """Documented band of the average difference: < 0.001, < 0.01, else."""
        difference = self.average_difference
        return "EXCELLENT" if difference < 0.001 else "GOOD" if difference < 0.01 else "WARNING"

    @cached_property
    def unrelated(self) -> tuple[ParamName, ...]:
        """Matrices whose tuned values are unrelated to the base's."""
        return tuple(t.name for t in self.tensors if t.is_unrelated)

    @cached_property
    def outgrown(self) -> tuple[ParamName, ...]:
        """Matrices that are the base's, and moved by more than their own norm: those that the base holds near 0."""
        return tuple(t.name for t in self.tensors if len(t.shape) > 1 and t.relative > 1 and not t.is_unrelated)

    @property
    def can_be_base(self) -> bool:
        """Whether the tuned checkpoint can have been tuned from this base."""
        matrices = sum(len(t.shape) > 1 for t in self.tensors)
        return not self.unmatched and len(self.unrelated) <= MOST_UNRELATED * matrices

    @property
    def verdict(self) -> str:
        """Verdict on whether this can be the base, with the reason."""
        if self.unmatched:
            names = listing(self.unmatched, limit=3)
            return f"This is not the base: {plural(len(self.unmatched), 'tensor')} without a match: {names}."
        some = f"{plural(len(self.unrelated), 'matrix', 'matrices')} unrelated to it: "
        some += listing(self.unrelated, limit=3)
        if not self.can_be_base:
            return f"This is not the base that it was tuned from: {some}."
        parts = [
            "This can be the base that it was tuned from: its matrices moved by "
            f"{self.median_relative:.2%} of their norm (median)."
        ]
        if self.unrelated:
            parts.append(f"Training reinitialised some layers, or part of the base is another model: {some}.")
        if self.outgrown:
            own = "its own norm" if len(self.outgrown) == 1 else "their own norm"
            parts.append(
                f"{plural(len(self.outgrown), 'matrix', 'matrices')} moved by more than {own} "
                f"({listing(self.outgrown, limit=3)}): expected where the base holds values near 0."
            )
        return " ".join(parts)

    @property
    def band_meaning(self) -> str:
        """What the documented band says where it sounds worse than the verdict; else nothing."""
        if self.band != "WARNING" or not self.can_be_base:
            return ""
        return (
            "The documented bands are absolute values made for SDXL: WARNING says that the fine-tune changed much, or "
            "that the model's weights are large, as those of narrow models are. It does not speak against the base."
        )


def check_pair(base: Checkpoint, tuned: Checkpoint) -> None:
    """Refuse a base given as the tuned checkpoint, and warn of anything that keeps a LoRA from the tuned image.

    The files' own records decide: the mark of an exact base, else the counter of training iterations. Files without
    such records, like the published LBM, cannot be told apart this way.
    """
    if _is_exact_base(tuned):
        if not _is_exact_base(base):
            raise PairingError(
                f"{tuned.path} is marked as an exact base and {base.path} is not: the two are swapped. Use ",
                Option("base_model_path"),
                f" {tuned.path} ",
                Option("tuned_model_path"),
                f" {base.path}.",
            )
        warn(f"{tuned.path} is marked as an exact base, as is {base.path}. Is it the tuned checkpoint?")
    elif _iterations(base) > 0 == _iterations(tuned):
        warn(
            f"{base.path} counts {plural(int(_iterations(base)), 'training iteration')}, {tuned.path} none. "
            "Are base and tuned swapped?"
        )
    names = [key for key in tuned.specs if key.startswith(_VAE) and key in base.specs]
    differing = [key for key in names if not torch.equal(base.read(key).float(), tuned.read(key).float())]
    if differing:
        warn(
            f"The VAEs differ in {len(differing)} of {plural(len(names), 'tensor')} ({differing[0]} ...): the LoRA "
            "covers only the denoiser, so base + LoRA decodes with the base's VAE."
        )


def _is_exact_base(checkpoint: Checkpoint) -> bool:
    return BASE_MARK in (checkpoint.metadata.get(ORIGIN_KEY), checkpoint.extra.get(ORIGIN_KEY))


def _iterations(checkpoint: Checkpoint) -> float:
    spec = checkpoint.specs.get(ITERATIONS_KEY)
    return float(checkpoint.read(ITERATIONS_KEY).float().max()) if spec is not None and spec.numel else 0.0


def compare_base(base: Component, tuned: Component, *, progress: Progress = SILENT) -> BaselineReport:
    """Measure a base against a tuned checkpoint, tensor by tensor, subtracted in fp32."""
    shared = [name for name in tuned if name in base and base.specs[name].shape == tuned.specs[name].shape]
    if not shared:
        raise PairingError(f"{base.path} and {tuned.path} have no tensors of equal name and shape.")
    progress.start(len(shared), "comparing with the tuned model")
    distances: list[TensorDistance] = []
    total = Measure()
    for name in shared:
        one, other = base.read(name), tuned.read(name)
        delta = torch.empty(other.shape)
        measured = measure_delta(delta.numel(), subtract(other, one, delta))
        distances.append(_distance(name, one.float(), other.float(), delta, measured))
        total += measured
        progress.advance()
    broken = [distance.name for distance in distances if not isfinite(distance.max_abs)]
    if broken:
        raise PairingError(
            f"{base.path} or {tuned.path} has values that are not finite, in {plural(len(broken), 'tensor')}: "
            f"{listing(broken)}."
        )
    unmatched = tuple(sorted({*base, *tuned} - set(shared)))
    return BaselineReport(tensors=tuple(distances), unmatched=unmatched, noise_floor=_finite(total.noise_floor))


def _distance(name: ParamName, base: Tensor, tuned: Tensor, delta: Tensor, measured: Measure) -> TensorDistance:
    base_norm, tuned_norm = _norm(base), _norm(tuned)
    both = base_norm * tuned_norm
    alike = 1.0 if base_norm == tuned_norm else 0.0  # if one of them is 0 and has no direction
    return TensorDistance(
        name=name,
        shape=tuple(base.shape),
        mean_abs=measured.mean_error,
        max_abs=float(delta.abs().max()),
        unchanged=float((delta == 0).sum()) / delta.numel(),
        relative=sqrt(measured.delta_sq) / base_norm if base_norm else (inf if tuned_norm else 0.0),
        cosine=float((base * tuned).sum(dtype=torch.float64)) / both if both else alike,
        noise_floor=_finite(measured.noise_floor),
    )


def _norm(values: Tensor) -> float:
    return torch.linalg.vector_norm(values, dtype=torch.float64).item()


def _finite(noise_floor: float) -> float:
    """Return 0 for an infinite noise floor: if nothing changed, the delta has no noise."""
    return 0.0 if noise_floor == inf else noise_floor
