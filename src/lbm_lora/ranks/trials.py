"""Run choices of ranks before they are written, to correct predictions or to reach an error or a PSNR."""

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np

from lbm_lora.adapter import StoredDelta
from lbm_lora.errors import InputError, Option
from lbm_lora.factorize import Moment
from lbm_lora.naming import ParamName
from lbm_lora.ranks.allocate import Allocator, Choice
from lbm_lora.ranks.rules import ErrorLimit, PsnrFloor, RankRule
from lbm_lora.ranks.search import Proposal, Run, smallest
from lbm_lora.ranks.spectrum import WeightsOf

SHIFTS: Mapping[str, str] = {
    "content": "with other content",
    "larger": "that are larger",
    "smaller": "that are smaller",
    "timesteps": "at other timesteps",
}
"""Map from the kinds of inputs that are unlike the calibration's to words for them. A LoRA's errors differ between them
by 10 dB and more, so that one number for all would be right for none."""

_LEAST = 1e-9  # relative errors below this count as zero
_TABLE = (0.1, 0.2, 0.35, 0.5, 0.7, 1.5, 2.0, 3.0)  # other sizes in the table, relative to the file's
_TOGETHER = -6.0  # dB: first guess of the result minus the prediction, before any run: layers' errors add up


@dataclass(frozen=True, kw_only=True)
class TrialErrors:
    """Relative errors of the output of base + LoRA, at inputs that no calibration has seen.

    Attributes:
        typical: weighted geometric mean over inputs of the calibration's kind.
        low, high: 80 % of such inputs lie between these.
        shifted: geometric mean over inputs unlike the calibration's, by the kind of shift; see `SHIFTS`.
        shifted_within: 80 % of inputs of these kinds lie between these.
    """

    typical: float
    low: float
    high: float
    shifted: Mapping[str, float] = field(default_factory=dict[str, float])
    shifted_within: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    @property
    def typical_shifted(self) -> float | None:
        """Geometric mean over the kinds of shift; None if there are none."""
        return math.prod(self.shifted.values()) ** (1 / len(self.shifted)) if self.shifted else None


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
    """A network that accepts deltas and is compared with the tuned model.

    Attributes:
        has_points: whether `error` has points to measure at.
    """

    @property
    def has_points(self) -> bool: ...

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


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Expected error of a file of a given size.

    Attributes:
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
        reference_sq: the square that squared errors are relative to.
    """

    def __init__(self, allocator: Allocator, *, reference_sq: float, of: str) -> None:
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
        runs = sorted(self._measured.items())

        def expected(value: Callable[[TrialErrors], float]) -> float:
            factors = [math.log(value(errors) / one) for one, errors in runs]
            return foreseen * math.exp(np.interp(math.log(foreseen), np.log([one for one, _ in runs]), factors))

        nearest = self._measured[min(self._measured, key=lambda one: abs(math.log(one / foreseen)))]
        error = expected(lambda found: found.typical)
        shifted = {kind: expected(lambda found, kind=kind: found.shifted[kind]) for kind in nearest.shifted}
        known = self.measured(choice)
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

    def table(self, choice: Choice) -> tuple[Prediction, ...]:
        """Return predictions for a choice, and for smaller and larger files."""
        distinct: dict[int, Choice] = {}
        for share in _TABLE:
            with suppress(InputError):  # too small for a file
                (other,) = self._allocator.within([round(choice.nbytes * share)])
                distinct[other.nbytes] = other
        distinct[choice.nbytes] = choice
        return tuple(self.prediction(distinct[nbytes]) for nbytes in sorted(distinct))

    def propose(self, decibel: float) -> Proposal | None:
        """Return the smallest file with an error this many dB below the output, by the survey; the best for inf dB."""
        if decibel == math.inf:
            (choice,) = self._allocator.within([sys.maxsize])
        else:
            try:
                choice = self._allocator.error(10 ** (-decibel / 10) * self.reference_sq, self.reference_sq)
            except InputError:
                return None
        foreseen = -20 * math.log10(max(self.foreseen(choice), _LEAST))
        return Proposal(choice=choice, foreseen=foreseen)


def predictor_of(allocator: Allocator, norm: OutputNorm | None) -> Predictor:
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

    allocator: Allocator
    predictor: Predictor
    deltas_of: Callable[[Choice], AbstractContextManager[Iterable[StoredDelta]]]

    def choose(self, rule: RankRule, trial: Trial | None) -> list[ChosenRanks]:
        """Return a choice for each adapter of the rule. With a trial each is run, and limits are searched for."""
        match rule:
            case PsnrFloor():
                assert trial is not None
                return [self._with_psnr(trial, rule.value)]
            case ErrorLimit() if trial is not None and trial.has_points:
                return [self._with_error(trial, rule.value)]
            case _:
                choices = rule.choices(self.allocator, self.predictor.reference_sq)
                return [self._run(trial, choice) if trial else ChosenRanks(choice=choice) for choice in choices]

    def _run(self, trial: Trial, choice: Choice) -> ChosenRanks:
        self.run(trial, choice)
        return ChosenRanks(choice=choice, images=trial.images())

    def run(self, trial: Trial, choice: Choice) -> TrialErrors | None:
        """Set the network to a choice, and learn from its errors."""
        with self.deltas_of(choice) as deltas:
            trial.take(deltas)
        errors = trial.error()
        self.predictor.learn(choice, errors)
        return errors

    def _with_error(self, trial: Trial, error: float) -> ChosenRanks:

        def measure(choice: Choice) -> float:
            measured = self.run(trial, choice)
            return -20 * math.log10(max(measured.typical if measured else 0.0, _LEAST))

        target = -20 * math.log10(error)
        found = smallest(target, self.predictor.propose, measure, offset=_TOGETHER)
        _check_reached(
            found,
            target,
            Option("max_output_error"),
            f" {error:g} is out of reach: the best file, with every delta dense, has an error of "
            f"{10 ** (-found.result / 20):.3g} in this precision. Allow more",
        )
        with self.deltas_of(found.choice) as deltas:
            trial.take(deltas)
        return ChosenRanks(choice=found.choice, images=trial.images())

    def _with_psnr(self, trial: Trial, psnr: float) -> ChosenRanks:
        """Return the smallest file with which every image reaches this PSNR. The base's PSNR gives the first guess."""
        seen: dict[int, TrialImages] = {}

        def compare(nbytes: int) -> float:
            found = trial.images()
            assert found is not None
            seen[nbytes] = found
            return found.worst_psnr

        def measure(choice: Choice) -> float:
            self.run(trial, choice)
            return compare(choice.nbytes)

        trial.take()
        found = smallest(psnr, self.predictor.propose, measure, offset=compare(0))
        _check_reached(
            found,
            psnr,
            Option("min_psnr"),
            f" {psnr:g} is out of reach: the best file, with every delta dense, gives {found.result:.2f} dB in this "
            "precision. Ask for less",
        )
        choice = found.choice
        return ChosenRanks(choice=choice, images=replace(seen[choice.nbytes], predicted_psnr=found.predicted))


def _check_reached(found: Run, target: float, *message: str | Option) -> None:
    if found.result < target:
        raise InputError(*message, ", or use ", Option("save_precision"), " fp16 or float.")
