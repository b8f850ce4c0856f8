"""Adapters with what was measured on them. A part of one, or one of another dtype, is a plain adapter again."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from lbm_lora.adapter import Adapter
from lbm_lora.extraction import Prediction, TrialImages
from lbm_lora.report import WeightReport

if TYPE_CHECKING:
    from lbm_lora.refinement.distill import DistillResult


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class MeasuredAdapter(Adapter):
    """What `extract` gives.

    Attributes:
        report: how well it keeps the change of the fine-tune, in weights.
        predicted: what is expected of it, and what was measured; None where ranks were given and nothing calibrated.
        trial: its images against the tuned model's, where `images` or `min_psnr` asked for them.
        sizes: what other sizes would give, where ranks were chosen for all layers together.
    """

    report: WeightReport
    predicted: Prediction | None = None
    trial: TrialImages | None = None
    sizes: tuple[Prediction, ...] = ()


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class RefinedAdapter(Adapter):
    """What `refine` gives.

    Attributes:
        outcome: the errors of the denoiser's output before and after, and the step that was kept.
    """

    outcome: "DistillResult"


def contents(adapter: Adapter) -> Mapping[str, Any]:
    """The fields of an adapter, for one with more of them."""
    return {one.name: getattr(adapter, one.name) for one in fields(Adapter)}
