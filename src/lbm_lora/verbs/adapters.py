"""Adapters with their measurements. A part of one, or one of another dtype, is a plain adapter again."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from lbm_lora.adapter import Adapter
from lbm_lora.extraction import Shrinkage
from lbm_lora.fidelity.weights import WeightReport
from lbm_lora.ranks import Prediction, TrialImages

if TYPE_CHECKING:
    from lbm_lora.refinement.distill import DistillResult


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class MeasuredAdapter(Adapter):
    """Adapter that `extract` returns.

    Attributes:
        report: its fidelity to the change of the fine-tune, in weights.
        predicted: its expected and measured error; None if ranks were given and nothing was calibrated.
        trial: its images against the tuned model's, with `images` or `min_psnr`.
        sizes: predictions for other sizes, if ranks were chosen for all layers together.
        shrinkage: how it compares with plain SVD of the same size, and whether the statistics were shrunk for that;
            None if it was not run.
    """

    report: WeightReport
    predicted: Prediction | None = None
    trial: TrialImages | None = None
    sizes: tuple[Prediction, ...] = ()
    shrinkage: Shrinkage | None = None


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class RefinedAdapter(Adapter):
    """Adapter that `refine` returns.

    Attributes:
        outcome: the errors of the denoiser's output before and after, and the step that was kept.
    """

    outcome: "DistillResult"


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ResizedAdapter(Adapter):
    """Adapter that `resize` returns.

    Attributes:
        resize_error: relative error of the weights against the LoRA that was resized, as stored.
        left_out: parameters of that LoRA that are not in this one: by a pattern, or not worth their bytes.
        predicted: expected error against it; measured if it was run at check points.
        trial: its images against those of the LoRA that was resized, with `images`.
        sizes: predictions for other sizes.
        notes: what a user should know, one sentence each.
    """

    resize_error: float
    left_out: tuple[str, ...]
    predicted: Prediction
    trial: TrialImages | None = None
    sizes: tuple[Prediction, ...] = ()
    notes: tuple[str, ...] = ()


def contents(adapter: Adapter) -> Mapping[str, Any]:
    """Return the fields of an adapter, for a subclass with more."""
    return {one.name: getattr(adapter, one.name) for one in fields(Adapter)}


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class CombinedAdapter(Adapter):
    """Adapter that `merge` returns.

    Attributes:
        relative_error: of all deltas as stored, relative to the merged deltas before their ranks were limited and
            rounded.
        scales: the scale of each LoRA, as text: those given, or those fitted to images.
    """

    relative_error: float
    scales: tuple[str, ...]
