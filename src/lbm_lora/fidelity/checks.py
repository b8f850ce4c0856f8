"""Inputs at which a LoRA is run before it is written, with the tuned model's outputs there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lbm_lora.fidelity.output_errors import spread_of, typical_error
from lbm_lora.fidelity.points import Point
from lbm_lora.ranks import SHIFTS, TrialErrors

CheckKind = Literal["held", "content", "larger", "smaller", "timesteps"]

MOST_HELD = 16
"""Most inputs that are held out, and most held points kept in statistics: with the shifted ones 37 MB for one-megapixel
images.

Errors differ more between images than between timesteps, so that images count.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Check:
    """An input that is not in the moments of a calibration.

    Attributes:
        kind: `held`, of the kind that was calibrated on, or one of `SHIFTS`.
        wanted: the tuned model's output there, fp32, on the CPU.
        point: the input of an LBM's denoiser; None for other networks.
        sample: index among the samples of another network's `run`.
    """

    kind: CheckKind
    wanted: Tensor
    point: Point | None = None
    sample: int = 0

    @property
    def weight(self) -> float:
        """Weight of its error: the probability of its timestep."""
        return self.point.probability if self.point else 1.0


def held_out(count: int) -> list[int]:
    """Return which of a number of images or samples are held out of the moments: one in four, `MOST_HELD` at most,
    evenly spread."""
    held = min(count // 4, MOST_HELD)
    return [(2 * index + 1) * count // (2 * held) for index in range(held)]


def trial_errors(checks: Sequence[Check], errors: Sequence[float]) -> TrialErrors | None:
    """Summarise relative errors at checks, in their order; None if none of them was held."""
    found: dict[str, list[tuple[float, float]]] = {}
    for check, error in zip(checks, errors, strict=True):
        found.setdefault(check.kind, []).append((error, check.weight))
    if "held" not in found:
        return None
    typical = {kind: typical_error(*zip(*pairs, strict=True)) for kind, pairs in found.items()}
    within = {kind: spread_of([error for error, _ in pairs], typical[kind]) for kind, pairs in found.items()}
    low, high = within["held"]
    kinds = [kind for kind in SHIFTS if kind in typical]
    return TrialErrors(
        typical=typical["held"],
        low=low,
        high=high,
        shifted={kind: typical[kind] for kind in kinds},
        shifted_within={kind: within[kind] for kind in kinds},
    )
