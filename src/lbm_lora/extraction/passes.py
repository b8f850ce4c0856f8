"""Passes that execute a plan: each tensor is read, subtracted, factorized, rounded and measured, a few at a time.

Two passes share one interface. `DirectPass` decomposes each delta as it is read: ranks are given, and all errors in a
matrix cost the same. `SurveyedPass` is the second of two passes: it truncates a survey's vectors to the chosen ranks.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from lbm_lora.adapter import Outcome
from lbm_lora.checkpoint import Checkpoint, Fingerprint
from lbm_lora.errors import InputError
from lbm_lora.extraction.deltas import Delta, DeltaReader, DeltaSettings, left_out, low_rank
from lbm_lora.extraction.plan import Plan, PlanItem
from lbm_lora.extraction.survey import seed_of, stored_vectors
from lbm_lora.factorize import Factors, Whitening, factorize_ranks, to_matrix, weighted_factors
from lbm_lora.naming import ParamName, module_of
from lbm_lora.parallel import ordered_map
from lbm_lora.ranks import WeightsOf

Ranks = Mapping[ParamName, int | None]
"""Rank of each decomposed delta; 0 is nothing, None is the dense delta."""


@runtime_checkable
class Pass(Protocol):
    """One pass over both files. Iterate to the end, then read the fingerprints."""

    def __len__(self) -> int:
        """Return the number of tensors in the plan."""
        ...

    def __iter__(self) -> Iterator[tuple[Outcome, ...]]:
        """Yield the outcomes of each tensor, one per adapter."""
        ...

    def fingerprints(self) -> tuple[Fingerprint, Fingerprint]:
        """Return the fingerprints of base and tuned, after the pass."""
        ...


class DirectPass:
    """Pass that decomposes each delta at given ranks.

    Args:
        plans: one plan per adapter; they differ only in ranks. Each matrix is decomposed once for all of them, so a
            lower rank may differ in its last digits from the result of a separate run.
    """

    def __init__(self, plans: Sequence[Plan], settings: DeltaSettings) -> None:
        self._plans = plans
        self._settings = settings
        self._reader = DeltaReader(plans[0].pairing, settings)

    def __len__(self) -> int:
        return len(self._plans[0].items)

    def __iter__(self) -> Iterator[tuple[Outcome, ...]]:
        return ordered_map(self._outcomes, zip(*(plan.items for plan in self._plans), strict=True))

    def fingerprints(self) -> tuple[Fingerprint, Fingerprint]:
        return self._reader.fingerprints()

    def _outcomes(self, items: tuple[PlanItem, ...]) -> tuple[Outcome, ...]:
        self._reader.hash(items[0])
        found = self._reader.read(items[0])
        if isinstance(found, Outcome):
            return (found,) * len(items)
        try:
            factors = self._decompose(items, found)
        except InputError as error:
            raise InputError(f"{items[0].name}: ", *error.args) from None
        return tuple(low_rank(item, found, made) for item, made in zip(items, factors, strict=True))

    def _decompose(self, items: Sequence[PlanItem], delta: Delta) -> list[Factors]:
        made = factorize_ranks(
            to_matrix(delta.values).to(self._settings.device),
            [item.rank or 1 for item in items],
            self._settings.dtype,
            seed=seed_of(items[0].name),
            squared_norm=delta.measure.delta_sq,
        )
        return [Factors(factors.up.cpu(), factors.down.cpu()) for factors in made]


class SurveyedPass:
    """Pass that truncates the vectors of a survey to the chosen ranks.

    Args:
        weights_of: the same as in the survey.
        choices: ranks for each adapter; a delta without a rank is one that the survey found unchanged or too small.
        vectors: the survey's file of vectors.
    """

    def __init__(
        self,
        plan: Plan,
        settings: DeltaSettings,
        weights_of: WeightsOf,
        choices: Sequence[Ranks],
        vectors: Checkpoint,
    ) -> None:
        self._plan = plan
        self._settings = settings
        self._weights_of = weights_of
        self._choices = choices
        self._vectors = vectors
        self._reader = DeltaReader(plan.pairing, settings)

    def __len__(self) -> int:
        return len(self._plan.items)

    def __iter__(self) -> Iterator[tuple[Outcome, ...]]:
        return ordered_map(self._outcomes, self._plan.items)

    def fingerprints(self) -> tuple[Fingerprint, Fingerprint]:
        return self._reader.fingerprints()

    def _outcomes(self, item: PlanItem) -> tuple[Outcome, ...]:
        self._reader.hash(item)
        delta = self._reader.read(item)
        if isinstance(delta, Outcome):
            return (delta,) * len(self._choices)
        whitening = self._weights_of(module_of(item.name)).whitening()
        return tuple(self._outcome(item, delta, ranks[item.name], whitening) for ranks in self._choices)

    def _outcome(self, item: PlanItem, delta: Delta, rank: int | None, whitening: Whitening) -> Outcome:
        if rank is None:
            return self._reader.dense(item, delta, "stored dense: smaller than its factors")
        if rank == 0:
            return left_out(item, "not worth the bytes", delta.measure)
        svd = stored_vectors(self._vectors, item.name).first(rank)
        try:
            factors = weighted_factors(svd, self._settings.dtype, whitening)
        except InputError as error:
            raise InputError(f"{item.name}: ", *error.args) from None
        return low_rank(item, delta, Factors(factors.up.contiguous(), factors.down.contiguous()))
