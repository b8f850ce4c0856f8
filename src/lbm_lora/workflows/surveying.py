"""The first pass of an extraction in two: every delta decomposed once, and what its errors cost."""

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lbm_lora.adapter import rank_bytes
from lbm_lora.checkpoint import fingerprint
from lbm_lora.errors import CheckpointError
from lbm_lora.extract import Action, Chooser, Plan, PlanItem, Settings, Survey, unweighted
from lbm_lora.factorize import FixedRank, rank_bound
from lbm_lora.naming import module_of
from lbm_lora.progress import Progress
from lbm_lora.workflows.choosing import Chosen, Policy
from lbm_lora.workflows.extracted import overhead

if TYPE_CHECKING:
    from lbm_lora.calibrate import Statistics

_SMALL_SIDE = 192  # up to here all ranks of a matrix are found anyway
_LEAST_CAP = 64
_ABOVE_UNIFORM = 4  # how many times the rank that all layers would get alike one layer may get
_SHARE = 0.25  # of its bound that a rank may reach where errors decide: beyond it the dense delta is near in bytes


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
            chosen.checks = statistics.checks
        yield chosen
    finally:
        scratch.unlink(missing_ok=True)


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
    if policy.module_error is not None or policy.energy is not None:
        return _with_caps(plan, lambda item: rank_bound(item.shape))
    if not policy.sizes:
        return _with_caps(plan, lambda item: _below(rank_bound(item.shape), _SHARE * rank_bound(item.shape)))
    items = plan.of(Action.DECOMPOSE)
    per_rank = sum(rank_bytes(item.shape, settings.dtype) for item in items)
    cap = _ABOVE_UNIFORM * max(policy.sizes) / per_rank
    return _with_caps(plan, lambda item: _below(rank_bound(item.shape), cap))


def _below(bound: int, cap: float) -> int:
    return bound if bound <= _SMALL_SIDE else min(bound, max(_LEAST_CAP, math.ceil(cap)))


def _with_caps(plan: Plan, highest: Callable[[PlanItem], int]) -> Plan:
    items = (item if item.rank is None else replace(item, rank=highest(item)) for item in plan.items)
    return replace(plan, items=tuple(items))
