"""Predict the error of a choice of ranks: from the survey, corrected by trials."""

import math
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from lbm_lora.errors import InputError
from lbm_lora.ranks.allocate import Choice, RankAllocator
from lbm_lora.ranks.allocate_widths import WidthAllocator
from lbm_lora.ranks.search import Proposal
from lbm_lora.ranks.trial_errors import TrialErrors

_LEAST = 1e-9  # relative errors below this count as zero
_TABLE = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)  # sizes in the table, relative to the file's


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Expected error of a file of a given size.

    Attributes:
        nbytes: bytes of the file.
        error: relative error, of the denoiser's output if the survey was calibrated, else of the weights: the survey's
            error times the factor found by running this or other sizes.
        of: `output` or `weights`.
        foreseen: error predicted by the survey alone.
        measured: measured error of this file, if it was run; see `Trial.error`.
        low, high: 80 % of inputs of the calibration's kind have an error between these; None if no file was run.
        shifted: expected errors on inputs unlike the calibration's, by the kind of shift, as far as it was measured.
        shifted_within: 80 % of such inputs have an error between these.
    """

    nbytes: int
    error: float
    of: str
    foreseen: float
    measured: float | None = None
    low: float | None = None
    high: float | None = None
    shifted: Mapping[str, float] = field(default_factory=dict[str, float])
    shifted_within: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    def facts(self) -> dict[str, float]:
        """Return what a file records of it."""
        shifted = {f"predicted_{self.of}_error_{kind}": error for kind, error in self.shifted.items()}
        return {f"predicted_{self.of}_error": self.error, **shifted}


class Predictor:
    """Predict the relative error of choices, and learn from those that were run.

    Args:
        allocator: source of the choices.
        reference_sq: the square that squared errors are relative to.
        of: what the predictions refer to, `output` or `weights`.
    """

    def __init__(self, allocator: RankAllocator | WidthAllocator, *, reference_sq: float, of: str) -> None:
        self.reference_sq, self.of = reference_sq, of
        self._allocator = allocator
        self._measured: dict[float, TrialErrors] = {}

    def foreseen(self, choice: Choice) -> float:
        """Return the relative error predicted by the survey alone, which treats layers as independent."""
        return math.sqrt(choice.error_sq / self.reference_sq) if self.reference_sq else 0.0

    def learn(self, choice: Choice, measured: TrialErrors | None) -> None:
        """Use the measured errors of a choice in all further predictions."""
        if measured and measured.typical and self.foreseen(choice):
            self._measured[self.foreseen(choice)] = measured

    def measured(self, choice: Choice) -> TrialErrors | None:
        """Return the errors of a choice if it was run and has any."""
        return self._measured.get(self.foreseen(choice))

    def prediction(self, choice: Choice) -> Prediction:
        """Return the survey's error times the measured factor, interpolated between the choices that were run."""
        foreseen = self.foreseen(choice)
        if not self._measured or not foreseen:
            return Prediction(nbytes=choice.nbytes, error=foreseen, of=self.of, foreseen=foreseen)
        nearest = self._measured[min(self._measured, key=lambda one: abs(math.log(one / foreseen)))]
        error = foreseen * self._factor(foreseen, lambda found: found.typical)
        shifted = {
            kind: foreseen * self._factor(foreseen, lambda found, kind=kind: found.shifted[kind])
            for kind in nearest.shifted
        }
        known = self._measured.get(foreseen)
        return Prediction(
            nbytes=choice.nbytes,
            error=error,
            of=self.of,
            foreseen=foreseen,
            measured=known.typical if known else None,
            low=error * nearest.low / nearest.typical,
            high=error * nearest.high / nearest.typical,
            shifted=shifted,
            shifted_within={
                kind: (low * shifted[kind] / nearest.shifted[kind], high * shifted[kind] / nearest.shifted[kind])
                for kind, (low, high) in nearest.shifted_within.items()
            },
        )

    def _factor(self, foreseen: float, value: Callable[[TrialErrors], float]) -> float:
        """Return a measured error over the foreseen one, interpolated between the choices that were run."""
        known = sorted(self._measured)
        factors = [math.log(value(self._measured[one]) / one) for one in known]
        return math.exp(np.interp(math.log(foreseen), np.log(known), factors))

    def table(self, choice: Choice) -> tuple[Prediction, ...]:
        """Return predictions for a choice, and for smaller and larger files."""
        sizes = [round(choice.nbytes * share) for share in _TABLE if share != 1]
        others: list[Choice] = []
        for size in sizes:
            with suppress(InputError):  # too small for a file
                others += self._allocator.within([size])
        distinct = {one.nbytes: one for one in (*others, choice)}
        return tuple(self.prediction(distinct[nbytes]) for nbytes in sorted(distinct))

    def propose(self, decibel: float) -> Proposal[Choice] | None:
        """Return the smallest file with an error this many dB below the output, by the survey; the best for inf dB."""
        if decibel == math.inf:
            (choice,) = self._allocator.within([sys.maxsize])
        else:
            try:
                choice = self._allocator.error(10 ** (-decibel / 10) * self.reference_sq)
            except InputError:
                return None
        return Proposal(
            found=choice, nbytes=choice.nbytes, foreseen=-20 * math.log10(max(self.foreseen(choice), _LEAST))
        )
