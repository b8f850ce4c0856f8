"""How close a base is to a tuned checkpoint, and whether it can be the base that this was tuned from."""

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
"""Below this, a tuned matrix is taken as unrelated to the base's: two unrelated matrices of n elements have 0 within
about 4 / sqrt(n). A fine-tune that moves a matrix by its own norm has 0.7, by 2.7 times its norm 0.35; the bundled
model, whose residual branches the base holds near 0, goes down to 0.2."""
MOST_UNRELATED = 0.01
"""Share of unrelated matrices that a base may have: a fine-tune may start some layer anew."""
ORIGIN_KEY = "initialization"
BASE_MARK = "exact_architecture_match"
"""What a base says of where it comes from, in the metadata of its `.safetensors` and as an entry of its `.ckpt`."""
_VAE = "vae."
_LEAST_ELEMENTS = 1024  # where chance stays below 0.13, and so below LEAST_COSINE


@dataclass(frozen=True, kw_only=True)
class TensorDistance:
    """One parameter of base and tuned.

    Attributes:
        mean_abs, max_abs: of tuned - base.
        unchanged: share of the elements that are equal, in [0, 1].
        relative: norm of tuned - base over the norm of base; inf where the base is 0 and tuned is not.
        cosine: of base and tuned as vectors; 1 where both are 0, 0 where one is.
        noise_floor: the part of the delta that the storage of tuned makes up: sqrt(sum(ulp^2) / 12) over
            the delta's norm; 0 where nothing changed.
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
        """A matrix whose tuned values are not those of the base, moved a little. Small tensors cannot tell."""
        elements = torch.Size(self.shape).numel()
        return len(self.shape) > 1 and elements >= _LEAST_ELEMENTS and self.cosine < LEAST_COSINE


@dataclass(frozen=True, kw_only=True)
class BaselineReport:
    """What `compare_base` measured.

    Attributes:
        tensors: every parameter that both have, with equal shapes.
        unmatched: names that only one has, or whose shapes differ.
        noise_floor: over all tensors together.
    """

    tensors: tuple[TensorDistance, ...]
    unmatched: tuple[ParamName, ...]
    noise_floor: float

    @property
    def matched(self) -> str:
        """The documented "Matched denoiser keys": m/total."""
        return f"{len(self.tensors)}/{len(self.tensors) + len(self.unmatched)}"

    @property
    def average_difference(self) -> float:
        """The documented one: mean over tensors of mean|tuned - base|."""
        return fmean(t.mean_abs for t in self.tensors)

    @property
    def maximum_difference(self) -> float:
        """The documented one: the largest mean|tuned - base| of a tensor."""
        return max(t.mean_abs for t in self.tensors)

    @property
    def unchanged(self) -> float:
        """Share of all elements that are equal, in [0, 1]."""
        sizes = [torch.Size(t.shape).numel() for t in self.tensors]
        return sum(t.unchanged * size for t, size in zip(self.tensors, sizes, strict=True)) / sum(sizes)

    @property
    def unchanged_tensors(self) -> int:
        """Tensors without any change."""
        return sum(t.unchanged == 1 for t in self.tensors)

    @property
    def median_relative(self) -> float:
        """Median over the matrices of ||tuned - base|| / ||base||; about 1.4 for unrelated ones of equal size."""
        return median([t.relative for t in self.tensors if len(t.shape) > 1] or [0.0])

    @property
    def band(self) -> Band:
        """The documented bands of the average difference: < 0.001, < 0.01, else."""
        difference = self.average_difference
        return "EXCELLENT" if difference < 0.001 else "GOOD" if difference < 0.01 else "WARNING"

    @cached_property
    def unrelated(self) -> tuple[ParamName, ...]:
        """Matrices whose tuned values have nothing to do with the base's."""
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
        """Whether this can be the base, and what it goes by."""
        if self.unmatched:
            names = listing(self.unmatched, limit=3)
            return f"This is not the base: {plural(len(self.unmatched), 'tensor')} without a partner: {names}."
        some = f"{plural(len(self.unrelated), 'matrix', 'matrices')} without any likeness to it: "
        some += listing(self.unrelated, limit=3)
        if not self.can_be_base:
            return f"This is not the base that it was tuned from: {some}."
        parts = [
            "This can be the base that it was tuned from: its matrices moved by "
            f"{self.median_relative:.2%} of their norm (median)."
        ]
        if self.unrelated:
            parts.append(f"Training started some layers anew, or a part of the base is another: {some}.")
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
    """Refuse a base in the place of the tuned checkpoint, and warn of what keeps a LoRA from giving the tuned image.

    What the files say decides: the mark of an exact base, else the counter of training iterations. Files that say
    nothing of themselves, as the published LBM, cannot be told apart by it.

    Raises:
        PairingError: the tuned file says that it is an exact base, and the base does not.
    """
    if _is_exact_base(tuned):
        if not _is_exact_base(base):
            raise PairingError(
                f"{tuned.path} says that it is an exact base, and {base.path} does not: the two are swapped. Give ",
                Option("base_model_path"),
                f" {tuned.path} ",
                Option("tuned_model_path"),
                f" {base.path}.",
            )
        warn(f"{tuned.path} says that it is an exact base, as {base.path} does. Is it the tuned checkpoint?")
    elif _iterations(base) > 0 == _iterations(tuned):
        warn(
            f"{base.path} counts {plural(int(_iterations(base)), 'training iteration')}, {tuned.path} none. "
            "Are base and tuned swapped?"
        )
    names = [key for key in tuned.specs if key.startswith(_VAE) and key in base.specs]
    differing = [key for key in names if not torch.equal(base.read(key).float(), tuned.read(key).float())]
    if differing:
        warn(
            f"The VAEs differ in {len(differing)} of {plural(len(names), 'tensor')} ({differing[0]} ...): the LoRA is "
            "about the denoiser alone, so base + LoRA decodes with the base's VAE."
        )


def _is_exact_base(checkpoint: Checkpoint) -> bool:
    return BASE_MARK in (checkpoint.metadata.get(ORIGIN_KEY), checkpoint.extra.get(ORIGIN_KEY))


def _iterations(checkpoint: Checkpoint) -> float:
    """What LBM's own counter says; 0 where there is none."""
    spec = checkpoint.specs.get(ITERATIONS_KEY)
    return float(checkpoint.read(ITERATIONS_KEY).float().max()) if spec is not None and spec.numel else 0.0


def compare_base(base: Component, tuned: Component, *, progress: Progress = SILENT) -> BaselineReport:
    """Measure a base against a tuned checkpoint, tensor by tensor, subtracted in fp32.

    Raises:
        PairingError: the two have no tensor in common, or one of them holds values that are not finite.
    """
    shared = [name for name in tuned if name in base and base.specs[name].shape == tuned.specs[name].shape]
    if not shared:
        raise PairingError(f"{base.path} and {tuned.path} have no tensor of equal name and shape in common.")
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
            f"{base.path} or {tuned.path} holds values that are not finite, in {plural(len(broken), 'tensor')}: "
            f"{listing(broken)}."
        )
    unmatched = tuple(sorted({*base, *tuned} - set(shared)))
    return BaselineReport(tensors=tuple(distances), unmatched=unmatched, noise_floor=_finite(total.noise_floor))


def _distance(name: ParamName, base: Tensor, tuned: Tensor, delta: Tensor, measured: Measure) -> TensorDistance:
    base_norm, tuned_norm = _norm(base), _norm(tuned)
    both = base_norm * tuned_norm
    alike = 1.0 if base_norm == tuned_norm else 0.0  # where one of them is 0 and has no direction
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
    """Where nothing changed there is no delta for the noise to be a part of."""
    return 0.0 if noise_floor == inf else noise_floor
