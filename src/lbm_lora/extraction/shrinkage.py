"""Shrink statistics towards isotropic ones, until a LoRA is not worse than plain SVD on inputs unlike theirs.

Statistics of few or uniform inputs know nothing of the directions that those do not take, and spend no bytes on them:
on other inputs such a LoRA can be worse than plain SVD. With a trial, it is therefore compared with plain SVD of the
same size on held and on shifted inputs. If it is worse, stronger shrinkages are run: C and G become
(1 - s) C + s (tr C / n) I, and likewise G. The rule: of those that are not worse than plain SVD, neither on held nor on
shifted inputs, the least shrinkage, which has the least error on inputs of the calibration's kind; else plain SVD.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from lbm_lora.extraction.selection import RankSelection
from lbm_lora.ranks import Choice, ChosenRanks, FixedRanks, OutputNorm, RankRule, Trial, TrialErrors, unweighted

RIDGES = (0.1, 1.0, 10.0)
"""Ridges r between that of the statistics and plain SVD: s = r / (1 + r). See `factorize.Moment.root`."""

_AS_GOOD = 1.01  # errors within 1 % of each other count as equal
_FAR = 0.25  # of the base's error: a LoRA that is predicted to leave less is not as bad as the base


@dataclass(frozen=True, kw_only=True)
class Shrinkage:
    """The statistics that a LoRA was made with, and what decided.

    Attributes:
        kind: `given`: as they were measured; `shrunk`, with this ridge; `plain`: not used.
        plain: those of plain SVD of the same size.
        base: those of the base without a LoRA; None if the LoRA is far better.
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


def shrunk_as_needed(
    rule: RankRule,
    norm: OutputNorm,
    trial: Trial,
    found: list[ChosenRanks],
    selection: RankSelection,
    opened: Callable[[OutputNorm], RankSelection],
) -> tuple[list[ChosenRanks], RankSelection, Shrinkage | None]:
    """Compare the first choice with plain SVD, and shrink the statistics as far as it is worse.

    Args:
        found: what is chosen with the statistics as they are.
        opened: surveys with another norm.
    """
    first, given, shrunk = found[0].choice, selection.predictor.measured(found[0].choice), norm.shrunk
    if shrunk is None or given is None:
        return found, selection, None
    of_base = _base_errors(selection, first, trial)
    tried: dict[float, tuple[RankSelection, TrialErrors]] = {}

    def run(used: OutputNorm) -> tuple[RankSelection, TrialErrors]:
        other = opened(used)
        errors = other.chooser.run(trial, _at_size(other, rule, first))
        assert errors is not None
        return other, errors

    def is_safe_at(ridge: float) -> bool:
        tried[ridge] = run(replace(norm, weights_of=shrunk(ridge)))
        return is_safe(tried[ridge][1], of_plain)

    plain, of_plain = run(OutputNorm(name=norm.name, weights_of=unweighted, energy=0.0))
    if is_safe(given, of_plain):
        return found, selection, Shrinkage(kind="given", errors=given, plain=of_plain, base=of_base)
    least = bisect_left(RIDGES, True, key=is_safe_at)  # two runs at most
    if least == len(RIDGES):
        return plain.choose(rule, trial), plain, Shrinkage(kind="plain", errors=of_plain, plain=of_plain, base=of_base)
    used, errors = tried[RIDGES[least]]
    shrinkage = Shrinkage(kind="shrunk", ridge=RIDGES[least], errors=errors, plain=of_plain, base=of_base)
    return used.choose(rule, trial), used, shrinkage


def _at_size(selection: RankSelection, rule: RankRule, choice: Choice) -> Choice:
    if isinstance(rule, FixedRanks):
        return selection.allocator.fixed(rule.ranks[0])
    return selection.allocator.within([choice.nbytes])[0]


def _base_errors(selection: RankSelection, choice: Choice, trial: Trial) -> TrialErrors | None:
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
