"""Run choices of ranks before they are written, to check predictions or to reach an error or a PSNR."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from lbm_lora.adapter import StoredDelta
from lbm_lora.errors import InputError, Option
from lbm_lora.factorize import Moment
from lbm_lora.naming import ParamName
from lbm_lora.ranks.allocate import Choice, RankAllocator
from lbm_lora.ranks.allocate_widths import WidthAllocator
from lbm_lora.ranks.prediction import Predictor
from lbm_lora.ranks.rules import ErrorLimit, PsnrFloor, RankRule
from lbm_lora.ranks.search import smallest
from lbm_lora.ranks.spectrum import WeightsOf
from lbm_lora.ranks.trial_errors import TrialErrors

_TOGETHER = -6.0  # dB: first guess of the result minus the prediction, before any run: layers' errors add up


@dataclass(frozen=True, kw_only=True)
class TrialImages:
    """PSNR in dB of base + LoRA's decoded one-step images against the tuned model's, on float values in [-1, 1].

    Attributes:
        psnrs: (name, dB) of each image; infinite for equal images.
        predicted_psnr: PSNR of the worst image predicted before this LoRA was run, if a PSNR was requested.
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
    """A network that accepts deltas and is compared with the tuned model."""

    @property
    def has_points(self) -> bool:
        """Whether `error` has points to measure at."""
        ...

    def take(self, deltas: Iterable[StoredDelta] = ()) -> None:
        """Set the network to the base plus these deltas."""
        ...

    def error(self) -> TrialErrors | None:
        """Return the relative errors of the output; None if there are no points."""
        ...

    def images(self) -> TrialImages | None:
        """Return the PSNR of its images; None if there are none."""
        ...


@dataclass(frozen=True, kw_only=True)
class OutputNorm:
    """Norm of a network's output, used in place of the weight norm.

    Attributes:
        name: name of the file that it comes from, without folder.
        weights_of: returns the cost of an error in a module.
        vector_moment_of: returns M of a vector such as a bias: an error e in it costs e^T M e. None if not measured.
        energy: mean squared norm of the output; divides squared errors to make them relative. 0: all deltas' own.
        shrunk: returns `weights_of` with a larger ridge; None if it cannot be shrunk.
        open_trial: opens, after the survey, the network in which choices are run before they are written.
    """

    name: str
    weights_of: WeightsOf
    energy: float
    vector_moment_of: Callable[[ParamName], Moment | None] = lambda _: None
    open_trial: Callable[[], Trial | None] = lambda: None
    shrunk: Callable[[float], WeightsOf] | None = None


def predictor_of(allocator: RankAllocator | WidthAllocator, norm: OutputNorm | None) -> Predictor:
    """Return a predictor of the error of the weights, or with a norm that of the output."""
    reference_sq = (norm.energy if norm else 0.0) or allocator.energy_sq
    return Predictor(allocator, reference_sq=reference_sq, of="output" if norm else "weights")


@dataclass(frozen=True, kw_only=True)
class ChosenRanks:
    """A choice, and the images of its trial if they were compared."""

    choice: Choice
    images: TrialImages | None = None


@dataclass(frozen=True)
class Chooser:
    """Choose ranks by a rule, from a survey and an optional trial.

    Attributes:
        deltas_of: opens the deltas of a choice, as they would be stored.
    """

    allocator: RankAllocator | WidthAllocator
    predictor: Predictor
    deltas_of: Callable[[Choice], AbstractContextManager[Iterable[StoredDelta]]]

    def choose(self, rule: RankRule, trial: Trial | None) -> list[ChosenRanks]:
        """Return a choice for each adapter of the rule. With a trial each choice is run, and limits are searched for.

        Raises:
            InputError: no choice of ranks reaches the limit.
        """
        match rule:
            case PsnrFloor():
                if trial is None:
                    raise AssertionError("a PSNR limit needs images")
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
        """Return the smallest file with this measured error of the output."""

        def measure(choice: Choice) -> float:
            self._take(trial, choice)
            measured = trial.error()
            self.predictor.learn(choice, measured)
            return -20 * math.log10(max(measured.typical if measured else 0.0, 1e-9))

        target = -20 * math.log10(error)
        found = smallest(target, self.predictor.propose, measure, offset=_TOGETHER)
        if found.result < target:
            raise InputError(
                Option("max_output_error"),
                f" {error:g} is out of reach: the best file, with every delta dense, has an error of "
                f"{10 ** (-found.result / 20):.3g} in this precision. Allow more, or use ",
                Option("save_precision"),
                " fp16 or float.",
            )
        self._take(trial, found.proposal.found)
        return ChosenRanks(choice=found.proposal.found, images=trial.images())

    def _with_psnr(self, trial: Trial, psnr: float) -> ChosenRanks:
        """Return the smallest file with which every image reaches this PSNR. The base's PSNR gives the first guess."""
        seen: dict[int, TrialImages] = {}

        def compare(nbytes: int) -> float:
            found = trial.images()
            if found is None:
                raise AssertionError("a PSNR limit needs images")
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
                f" {psnr:g} is out of reach: the best file, with every delta dense, gives {found.result:.2f} dB in "
                "this precision. Ask for less, or use ",
                Option("save_precision"),
                " fp16 or float.",
            )
        return ChosenRanks(choice=choice, images=replace(seen[choice.nbytes], predicted_psnr=found.predicted))

    def _take(self, trial: Trial, choice: Choice) -> None:
        with self.deltas_of(choice) as deltas:
            trial.take(deltas)
