"""What a survey of all deltas offers: ranks under any policy, and predictions of what they do."""

import math
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import InputError
from lbm_lora.extract import Action, Choice, Chooser, Emission, Plan, Settings, WeightsOf
from lbm_lora.factorize import FixedRank
from lbm_lora.naming import module_of
from lbm_lora.workflows.extracted import Target
from lbm_lora.workflows.search import Proposal

if TYPE_CHECKING:
    from lbm_lora.calibrate import Check

_LEAST = 1e-9  # a relative error that counts as none
_TABLE = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)  # sizes of the table, as shares of the file's


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a file of a size is expected to do.

    Attributes:
        nbytes: of the file.
        error: relative: of the denoiser's output where the survey was calibrated, else of the weights. The survey's,
            times the factor that running this or other sizes has shown.
        of: `output` or `weights`.
        foreseen: the error by the survey alone.
        measured: the error of this very file, where it was run; see `Trial.error`.
    """

    nbytes: int
    error: float
    of: str
    foreseen: float
    measured: float | None = None


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How ranks are chosen: one of these, or several sizes or fixed ranks."""

    fixed: tuple[FixedRank, ...] = ()
    sizes: tuple[int, ...] = ()
    error: float | None = None
    psnr: float | None = None
    module_error: float | None = None
    energy: float | None = None


class Chosen:
    """A survey, with the policies that can be asked of it and the predictions that it makes.

    Attributes:
        reference_sq: the square that squared errors are relative to.
        of: what predictions are about, `output` or `weights`.
        checks: states to run a LoRA on, where the survey was calibrated.
    """

    def __init__(self, plan: Plan, settings: Settings, weights_of: WeightsOf, scratch: Path, chooser: Chooser) -> None:
        self.plan = plan
        self.settings = settings
        self.chooser = chooser
        self._weights_of = weights_of
        self._scratch = scratch
        self.reference_sq = chooser.energy_sq
        self.of = "weights"
        self.checks: tuple[Check, ...] = ()
        self._measured: dict[float, float] = {}

    def foreseen(self, choice: Choice) -> float:
        """The relative error by the survey alone, in which layers know nothing of each other."""
        return math.sqrt(choice.error_sq / self.reference_sq) if self.reference_sq else 0.0

    def learn(self, choice: Choice, measured: float | None) -> None:
        """Take the measured error of a choice into all further predictions."""
        if measured and self.foreseen(choice):
            self._measured[self.foreseen(choice)] = measured

    def prediction(self, choice: Choice) -> Prediction:
        """The survey's error times the measured factor, which is interpolated between the choices that were run."""
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

    def choices(self, policy: Policy) -> list[Choice]:
        """One for each LoRA that the policy asks for, by the survey alone."""
        if policy.fixed:
            return [self.chooser.fixed(ranks) for ranks in policy.fixed]
        if policy.sizes:
            return self.chooser.within(policy.sizes)
        if policy.error is not None:
            return [self.chooser.error(policy.error**2 * self.reference_sq)]
        if policy.module_error is not None:
            return [self.chooser.module_error(policy.module_error)]
        return [self.chooser.energy(policy.energy or 1.0)]

    def propose(self, decibel: float) -> Proposal[Choice] | None:
        """The smallest file whose error is so many dB below the output, by the survey; the best for infinite dB."""
        if decibel == math.inf:
            (choice,) = self.chooser.within([sys.maxsize])
        else:
            try:
                choice = self.chooser.error(10 ** (-decibel / 10) * self.reference_sq)
            except InputError:
                return None
        return Proposal(
            found=choice, nbytes=choice.nbytes, foreseen=-20 * math.log10(max(self.foreseen(choice), _LEAST))
        )

    def table(self, nbytes: int) -> tuple[Prediction, ...]:
        """What smaller and larger files would do."""
        sizes = [round(nbytes * share) for share in _TABLE]
        within = self.chooser.within([size for size in sizes if size > self.chooser.fixed_bytes])
        distinct = {choice.nbytes: choice for choice in within}
        return tuple(self.prediction(choice) for choice in distinct.values())

    @contextmanager
    def emission(self, choices: Sequence[Choice]) -> Generator[Emission]:
        """The second pass for these choices."""
        with open_checkpoint(self._scratch) as scratch:
            ranks = [choice.ranks for choice in choices]
            yield Emission(self.plan, self.settings, self._weights_of, ranks, scratch)

    def target(self, choice: Choice, path: Path, settings: Mapping[str, object], errors: Mapping[str, float]) -> Target:
        """The adapter of a choice.

        Args:
            errors: that were measured of it.
        """
        shapes = {item.name: item.shape for item in self.plan.of(Action.DECOMPOSE)}
        ranks = {module_of(name): rank for name, rank in choice.ranks.items() if rank}
        whole = {name: shapes[name] for name, rank in choice.ranks.items() if rank is None}
        highest = {2: 0, 4: 0}
        for name, rank in choice.ranks.items():
            highest[len(shapes[name])] = max(highest[len(shapes[name])], rank or 0)
        return Target(
            path=path,
            shapes={module_of(name): shapes[name] for name, rank in choice.ranks.items() if rank},
            ranks=ranks,
            dense={**self.plan.dense(), **whole},
            rank=highest[2],
            conv_rank=highest[4],
            settings=settings,
            errors={f"predicted_{self.of}_error": self.prediction(choice).error, **errors},
        )
