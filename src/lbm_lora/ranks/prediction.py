"""Predict the error of a choice of ranks: from the survey, corrected by trials."""

import math
import sys
from dataclasses import dataclass

import numpy as np

from lbm_lora.errors import InputError
from lbm_lora.ranks.allocate import Choice, RankAllocator
from lbm_lora.ranks.allocate_widths import WidthAllocator
from lbm_lora.ranks.search import Proposal

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
    """

    nbytes: int
    error: float
    of: str
    foreseen: float
    measured: float | None = None


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
        self._measured: dict[float, float] = {}

    def foreseen(self, choice: Choice) -> float:
        """Return the relative error predicted by the survey alone, which treats layers as independent."""
        return math.sqrt(choice.error_sq / self.reference_sq) if self.reference_sq else 0.0

    def learn(self, choice: Choice, measured: float | None) -> None:
        """Use the measured error of a choice in all further predictions."""
        if measured and self.foreseen(choice):
            self._measured[self.foreseen(choice)] = measured

    def prediction(self, choice: Choice) -> Prediction:
        """Return the survey's error times the measured factor, interpolated between the choices that were run."""
        foreseen = self.foreseen(choice)
        factor = 1.0
        if self._measured and foreseen:
            known = sorted(self._measured)
            factors = [math.log(self._measured[one] / one) for one in known]
            factor = math.exp(np.interp(math.log(foreseen), np.log(known), factors))
        return Prediction(
            nbytes=choice.nbytes,
            error=factor * foreseen,
            of=self.of,
            foreseen=foreseen,
            measured=self._measured.get(foreseen),
        )

    def table(self, choice: Choice) -> tuple[Prediction, ...]:
        """Return predictions for a choice, and for smaller and larger files."""
        sizes = [round(choice.nbytes * share) for share in _TABLE if share != 1]
        others = self._allocator.within([size for size in sizes if size > self._allocator.fixed_bytes])
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
