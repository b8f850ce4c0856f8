"""Extraction in two passes: survey all deltas, choose the ranks of one or several LoRAs, write them."""

import math
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lbm_lora.checkpoint import fingerprint, open_checkpoint
from lbm_lora.errors import CheckpointError, ConfigError
from lbm_lora.extract import (
    Action,
    Choice,
    Chooser,
    Emission,
    Plan,
    PlanItem,
    Settings,
    Survey,
    WeightsOf,
    unweighted,
)
from lbm_lora.factorize import FixedRank, matrix_shape, rank_bound
from lbm_lora.naming import module_of
from lbm_lora.progress import Progress
from lbm_lora.workflows.extracted import Target, overhead

if TYPE_CHECKING:
    from lbm_lora.calibrate import Statistics

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_SMALL_SIDE = 192  # up to here all ranks of a matrix are found anyway
_LEAST_CAP = 64
_ABOVE_UNIFORM = 4  # how many times the rank that all layers would get alike one layer may get
_TABLE = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)  # sizes of the table, as shares of the file's


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a file of a size is expected to do.

    Attributes:
        nbytes: of the file.
        error: relative: of the denoiser's output where the survey was calibrated, else of the weights.
        of: `output` or `weights`.
    """

    nbytes: int
    error: float
    of: str


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How ranks are chosen: one of these, or several sizes or fixed ranks."""

    fixed: tuple[FixedRank, ...] = ()
    sizes: tuple[int, ...] = ()
    error: float | None = None
    module_error: float | None = None
    energy: float | None = None


class Chosen:
    """A survey with the policies that can be asked of it."""

    def __init__(self, plan: Plan, settings: Settings, weights_of: WeightsOf, scratch: Path, chooser: Chooser) -> None:
        self.plan = plan
        self.settings = settings
        self.chooser = chooser
        self._weights_of = weights_of
        self._scratch = scratch
        self.reference_sq = chooser.energy_sq
        self.of = "weights"

    def prediction(self, choice: Choice) -> Prediction:
        error = math.sqrt(choice.error_sq / self.reference_sq) if self.reference_sq else 0.0
        return Prediction(nbytes=choice.nbytes, error=error, of=self.of)

    def choices(self, policy: Policy) -> list[Choice]:
        """One for each LoRA that the policy asks for."""
        if policy.fixed:
            return [self.chooser.fixed(ranks) for ranks in policy.fixed]
        if policy.sizes:
            return self.chooser.within(policy.sizes)
        if policy.error is not None:
            return [self.chooser.error(policy.error**2 * self.reference_sq)]
        if policy.module_error is not None:
            return [self.chooser.module_error(policy.module_error)]
        return [self.chooser.energy(policy.energy or 1.0)]

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

    def target(self, choice: Choice, path: Path, settings: Mapping[str, object]) -> Target:
        """The adapter of a choice."""
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
            errors={f"predicted_{self.of}_error": self.prediction(choice).error},
        )


@contextmanager
def surveyed(
    plan: Plan,
    settings: Settings,
    policy: Policy,
    calibration: Path | None,
    *,
    run_settings: Mapping[str, object],
    beside: Path,
    progress: Progress,
) -> Generator[Chosen]:
    """Decompose every delta once, as far as the policy can need it.

    Args:
        calibration: statistics of the tuned model.
        run_settings: what the files' metadata will say of the run.
        beside: the LoRA; the scratch file is put beside it, and removed at the end.

    Raises:
        CheckpointError: the statistics are of another model.
    """
    statistics = _statistics(calibration, plan) if calibration else None
    weights_of = statistics.__getitem__ if statistics else unweighted
    capped = _capped(plan, policy, settings)
    scratch = beside.with_name(f".{beside.stem}.vectors.safetensors")
    try:
        survey = Survey(capped, settings, weights_of, scratch)
        progress.start(len(survey), "surveying")
        result = survey.run(progress.advance)
        room = overhead(run_settings, plan)
        chooser = Chooser(capped, result, settings.dtype, overhead=room, is_weighted=statistics is not None)
        chosen = Chosen(capped, settings, weights_of, scratch, chooser)
        if statistics:
            chosen.reference_sq, chosen.of = statistics.output_energy, "output"
        yield chosen
    finally:
        scratch.unlink(missing_ok=True)


def parse_size(text: str) -> int:
    """`200MB`, `1.5 GB`, `800kB` or plain bytes -> bytes; units are powers of ten.

    Raises:
        ConfigError: it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMgG]?)[iI]?[bB]?\s*", text)
    if not match or float(match[1]) <= 0:
        raise ConfigError(f"--max_size {text}: give a size such as 200MB or 1.5GB.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _statistics(path: Path, plan: Plan) -> "Statistics":
    # only this needs the network classes
    from lbm_lora.calibrate import load_statistics

    statistics, tuned = load_statistics(path), plan.pairing.tuned
    if statistics.origin.tuned != fingerprint(tuned).digest:
        raise CheckpointError(
            f"{path} was measured on another model than {tuned.path}. Make it for this one: lbm-lora calibrate "
            f"--tuned_model_path {tuned.path} ..."
        )
    missing = [item.name for item in plan.of(Action.DECOMPOSE) if module_of(item.name) not in statistics]
    if missing:
        raise CheckpointError(
            f"{path} knows nothing of {len(missing)} modules, {missing[0]} the first: the model does not call them. "
            f"Leave them out: --exclude '{module_of(missing[0])}'."
        )
    return statistics


def _capped(plan: Plan, policy: Policy, settings: Settings) -> Plan:
    """The plan with the highest rank that each delta may get: a decomposition costs time for each of its ranks."""
    if policy.fixed:
        return plan.with_ranks(
            FixedRank(linear=max(r.linear for r in policy.fixed), conv=max(r.conv for r in policy.fixed))
        )
    if not policy.sizes:
        return _with_caps(plan, lambda item: rank_bound(item.shape))
    items = plan.of(Action.DECOMPOSE)
    per_rank = sum(settings.dtype.itemsize * sum(matrix_shape(item.shape)) for item in items)
    cap = max(_LEAST_CAP, _ABOVE_UNIFORM * math.ceil(max(policy.sizes) / per_rank))

    def highest(item: PlanItem) -> int:
        bound = rank_bound(item.shape)
        return bound if bound <= _SMALL_SIDE else min(bound, cap)

    return _with_caps(plan, highest)


def _with_caps(plan: Plan, highest: Callable[[PlanItem], int]) -> Plan:
    items = (item if item.rank is None else replace(item, rank=highest(item)) for item in plan.items)
    return replace(plan, items=tuple(items))
