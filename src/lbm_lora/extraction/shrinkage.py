"""Shrink statistics towards isotropic ones, until a LoRA is not worse than plain SVD on inputs unlike theirs.

Statistics of few or uniform inputs know nothing of the directions that those do not take, and spend no bytes on them:
on other inputs such a LoRA can be worse than plain SVD. With a trial, it is therefore compared with plain SVD of the
same size on held and on shifted inputs. If it is worse, stronger shrinkages are run: C and G become
(1 - s) C + s (tr C / n) I, and likewise G. The rule: of those that are not worse than plain SVD, neither on held nor on
shifted inputs, the least shrinkage, which has the least error on inputs of the calibration's kind; else plain SVD.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lbm_lora.ranks import Choice, FixedRanks, OutputNorm, RankRule, Trial, TrialErrors, unweighted

if TYPE_CHECKING:
    from lbm_lora.extraction.selection import RankSelection

RIDGES = (0.1, 1.0, 10.0)
"""Ridges r between that of the statistics and plain SVD: s = r / (1 + r). See `factorize.Moment.root`."""

_AS_GOOD = 1.01  # errors within 1 % of each other count as equal
_FAR = 0.25  # of the base's error: a LoRA that is predicted to leave less is not as bad as the base


@dataclass(frozen=True, kw_only=True)
class Shrinkage:
    """The statistics that a LoRA was made with, and what decided.

    Attributes:
        kind: `given`: as they were measured; `shrunk`, with this ridge; `plain`: not used.
        ridge: the ridge, if they were shrunk.
        errors: errors of the LoRA.
        plain: those of plain SVD of the same size.
        base: those of the base without a LoRA; None if they were not measured, see `base_errors`.
    """

    kind: Literal["given", "shrunk", "plain"]
    errors: TrialErrors
    plain: TrialErrors
    base: TrialErrors | None
    ridge: float | None = None

    @property
    def is_useless(self) -> bool:
        """Whether the base alone is as near to the tuned model, on held or on shifted inputs."""
        return self.base is not None and not is_safe(self.errors, self.base)

    def facts(self) -> dict[str, float]:
        """Return what a file records of it."""
        found = {"plain_output_error": self.plain.typical, "plain_shifted_output_error": self.plain.typical_shifted}
        return {key: value for key, value in {**found, "ridge": self.ridge}.items() if value is not None}


Open = Callable[[OutputNorm], AbstractContextManager["RankSelection"]]
"""Surveys with a norm."""


def plain_norm(norm: OutputNorm) -> OutputNorm:
    """Return the norm in which all errors cost the same, in the place of another."""
    return OutputNorm(name=norm.name, weights_of=unweighted, energy=0.0)


def at_size(selection: "RankSelection", rule: RankRule, choice: Choice) -> Choice:
    """Return the choice of another survey that has the ranks of a rule, or the size of a choice."""
    if isinstance(rule, FixedRanks):
        return rule.choices(selection.allocator, selection.predictor.reference_sq)[0]
    return selection.allocator.within([choice.nbytes])[0]


def run_choice(selection: "RankSelection", choice: Choice, trial: Trial) -> TrialErrors:
    """Run a choice and let the selection's predictor learn from it."""
    with selection.deltas_of(choice) as deltas:
        trial.take(deltas)
    errors = trial.error()
    assert errors is not None
    selection.predictor.learn(choice, errors)
    return errors


def base_errors(selection: "RankSelection", choice: Choice, trial: Trial) -> TrialErrors | None:
    """Return the errors of the base without a LoRA; None if the survey predicts far less for the choice.

    Only a LoRA that is nearly as bad is compared with the base, and a run of a large network takes long.
    """
    if choice.error_sq < _FAR**2 * selection.allocator.energy_sq:
        return None
    trial.take()
    return trial.error()


def is_safe(errors: TrialErrors, plain: TrialErrors) -> bool:
    """Whether a LoRA is not worse than plain SVD: on shifted inputs, and on held ones."""
    pairs = [(errors.typical, plain.typical)]
    if errors.typical_shifted is not None and plain.typical_shifted is not None:
        pairs.append((errors.typical_shifted, plain.typical_shifted))
    return all(one <= _AS_GOOD * other for one, other in pairs)


def least_shrinkage(is_safe_at: Callable[[float], bool]) -> float | None:
    """Return the lowest safe ridge of `RIDGES`, found by halving: two runs at most; None if none is."""
    low, high = 0, len(RIDGES)
    while low < high:
        middle = (low + high) // 2
        if is_safe_at(RIDGES[middle]):
            high = middle
        else:
            low = middle + 1
    return RIDGES[low] if low < len(RIDGES) else None
