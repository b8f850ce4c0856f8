"""Choices of ranks that are run before they are written: predictions checked, an error or a PSNR reached."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from lbm_lora.errors import InputError, Option
from lbm_lora.extraction.allocate import Choice, RankAllocator
from lbm_lora.extraction.deltas import Outcome
from lbm_lora.extraction.passes import Pass
from lbm_lora.extraction.prediction import Predictor
from lbm_lora.extraction.rules import ErrorLimit, PsnrFloor, RankRule
from lbm_lora.extraction.search import smallest

_TOGETHER = -6.0  # dB: how much smaller than foreseen an error is before anything was run: layers' errors add up


@dataclass(frozen=True, kw_only=True)
class TrialImages:
    """Decoded one-step images of base + LoRA against the tuned model's: PSNR of float values in [-1, 1], dB.

    Attributes:
        psnrs: (name, dB) of each image; infinite for equal ones.
        predicted_psnr: of the worst image, before this LoRA was run; where a PSNR was asked for.
    """

    psnrs: tuple[tuple[str, float], ...]
    predicted_psnr: float | None = None

    @property
    def count(self) -> int:
        return len(self.psnrs)

    @property
    def mean_psnr(self) -> float:
        return math.fsum(decibel for _, decibel in self.psnrs) / len(self.psnrs)

    @property
    def worst_psnr(self) -> float:
        return min(decibel for _, decibel in self.psnrs)

    @property
    def worst_image(self) -> str:
        return min(self.psnrs, key=lambda entry: entry[1])[0]


@runtime_checkable
class Trial(Protocol):
    """A network that takes deltas and is compared with the tuned model."""

    @property
    def has_points(self) -> bool:
        """Whether `error` has anything to measure at."""
        ...

    def take(self, outcomes: Iterable[Outcome] = ()) -> None:
        """Make the network the base with what the outcomes store."""
        ...

    def error(self) -> float | None:
        """The typical relative error of the output."""
        ...

    def images(self) -> TrialImages | None:
        """PSNR of its images; None where there are none."""
        ...


@dataclass(frozen=True, kw_only=True)
class ChosenRanks:
    """A choice, and the images of its trial where they were compared."""

    choice: Choice
    images: TrialImages | None = None


@dataclass(frozen=True)
class Chooser:
    """Chooses by a rule, from a survey and where there is one by a trial.

    Attributes:
        pass_of: opens the pass that gives the outcomes of choices.
    """

    allocator: RankAllocator
    predictor: Predictor
    pass_of: Callable[[list[Choice]], AbstractContextManager[Pass]]

    def choose(self, rule: RankRule, trial: Trial | None) -> list[ChosenRanks]:
        """A choice for each adapter that the rule asks for. With a trial each is run, and a limit is searched for.

        Raises:
            InputError: no choice of ranks reaches what is asked for.
        """
        match rule:
            case PsnrFloor():
                if trial is None:
                    raise AssertionError("a PSNR is asked for where there are images")
                return [self._with_psnr(trial, rule.value)]
            case ErrorLimit() if trial is not None and trial.has_points:
                return [self._with_error(trial, rule.value)]
            case _:
                choices = rule.choices(self.allocator, self.predictor.reference_sq)
                return [self._run(trial, choice) if trial else ChosenRanks(choice=choice) for choice in choices]

    def _run(self, trial: Trial, choice: Choice) -> ChosenRanks:
        self._take(trial, choice)
        self.predictor.learn(choice, trial.error())
        return ChosenRanks(choice=choice, images=trial.images())

    def _with_error(self, trial: Trial, error: float) -> ChosenRanks:
        """The smallest file with this measured error of the output."""

        def measure(choice: Choice) -> float:
            self._take(trial, choice)
            measured = trial.error() or 0.0
            self.predictor.learn(choice, measured)
            return -20 * math.log10(max(measured, 1e-9))

        target = -20 * math.log10(error)
        found = smallest(target, self.predictor.propose, measure, offset=_TOGETHER)
        if found.result < target:
            raise InputError(
                Option("max_output_error"),
                f" {error:g}: the best file, with every delta dense, leaves "
                f"{10 ** (-found.result / 20):.3g} in this precision. Ask for more, or use ",
                Option("save_precision"),
                " fp16 or float.",
            )
        self._take(trial, found.proposal.found)
        return ChosenRanks(choice=found.proposal.found, images=trial.images())

    def _with_psnr(self, trial: Trial, psnr: float) -> ChosenRanks:
        """The smallest file with which every image comes out with this PSNR. The base's own PSNR is the first guess."""
        seen: dict[int, TrialImages] = {}

        def compare(nbytes: int) -> float:
            found = trial.images()
            if found is None:
                raise AssertionError("a PSNR is asked for where there are images")
            seen[nbytes] = found
            return found.worst_psnr

        def measure(choice: Choice) -> float:
            self._take(trial, choice)
            self.predictor.learn(choice, trial.error())
            return compare(choice.nbytes)

        trial.take()
        found = smallest(psnr, self.predictor.propose, measure, offset=compare(0))
        choice = found.proposal.found
        if found.result < psnr:
            raise InputError(
                Option("min_psnr"),
                f" {psnr:g}: the best file, with every delta dense, gives {found.result:.2f} dB in this "
                "precision. Ask for less, or use ",
                Option("save_precision"),
                " fp16 or float.",
            )
        return ChosenRanks(choice=choice, images=replace(seen[choice.nbytes], predicted_psnr=found.predicted))

    def _take(self, trial: Trial, choice: Choice) -> None:
        with self.pass_of([choice]) as outcomes:
            trial.take(outcome for (outcome,) in outcomes)
