"""Passes that execute a plan: each tensor is read, subtracted, factorized, rounded and measured, a few at a time.

`DirectPass` decomposes each delta as it is read: ranks are given, and all errors in a matrix cost the same.
`SurveyedPass` is the second of two passes: it rounds a survey's vectors to the chosen ranks, or bits.
"""

from collections.abc import Iterator, Sequence

from lbm_lora.adapter import Outcome, StoredDelta
from lbm_lora.checkpoint import Checkpoint, Fingerprint
from lbm_lora.errors import InputError
from lbm_lora.extraction.deltas import Delta, DeltaReader, DeltaSettings, left_out, lora_module, low_rank
from lbm_lora.extraction.plan import Action, Plan, PlanItem
from lbm_lora.extraction.survey import seed_of, stored_vectors
from lbm_lora.factorize import (
    Factors,
    Grid,
    Weights,
    Whitening,
    factorize_ranks,
    packed_factors,
    to_matrix,
    weighted_factors,
)
from lbm_lora.naming import module_of
from lbm_lora.ranks import Choice, OutputNorm, unweighted
from lbm_lora.runtime import ordered_map

NOT_WORTH = "not worth the bytes"
_SMALLER = "stored dense: smaller than its factors"


class Pass:
    """One pass over both files: iterate to the end, then read the fingerprints."""

    def __init__(self, count: int, reader: DeltaReader) -> None:
        self._count, self._reader = count, reader

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[Outcome, ...]]:
        """Yield the outcomes of each tensor, one per adapter."""
        raise NotImplementedError

    def fingerprints(self) -> tuple[Fingerprint, Fingerprint]:
        """Return the fingerprints of base and tuned, after the pass."""
        return self._reader.fingerprints()

    def kept(self, outcomes: Sequence[tuple[Outcome, ...]]) -> "KeptPass":
        """Return this pass with its outcomes, which need not be computed again."""
        return KeptPass(outcomes, self._reader)


class KeptPass(Pass):
    """A pass that has been run, with its outcomes in memory."""

    def __init__(self, outcomes: Sequence[tuple[Outcome, ...]], reader: DeltaReader) -> None:
        super().__init__(len(outcomes), reader)
        self._outcomes = outcomes

    def __iter__(self) -> Iterator[tuple[Outcome, ...]]:
        return iter(self._outcomes)


class DirectPass(Pass):
    """Pass that decomposes each delta at given ranks.

    Args:
        plans: one plan per adapter; they differ only in ranks. Each matrix is decomposed once for all of them, so a
            lower rank may differ in its last digits from the result of a separate run.
    """

    def __init__(self, plans: Sequence[Plan], settings: DeltaSettings) -> None:
        super().__init__(len(plans[0].items), DeltaReader(plans[0].pairing, settings))
        self._plans, self._settings = plans, settings

    def __iter__(self) -> Iterator[tuple[Outcome, ...]]:
        return ordered_map(self._outcomes, zip(*(plan.items for plan in self._plans), strict=True))

    def _outcomes(self, item: tuple[PlanItem, ...]) -> tuple[Outcome, ...]:
        first = item[0]
        self._reader.hash(first)
        delta = self._reader.read(first)
        if isinstance(delta, Outcome):
            return (delta,) * len(item)
        try:
            made = factorize_ranks(
                to_matrix(delta.values).to(self._settings.device),
                [one.rank or 1 for one in item],
                self._settings.dtype,
                seed=seed_of(first.name),
                squared_norm=delta.measure.delta_sq,
            )
        except InputError as error:
            raise InputError(f"{first.name}: ", *error.args) from None
        return tuple(
            low_rank(one, delta, Factors(factors.up.cpu(), factors.down.cpu()))
            for one, factors in zip(item, made, strict=True)
        )


class SurveyedPass(Pass):
    """Pass that truncates the vectors of a survey to the chosen ranks.

    Args:
        choices: ranks for each adapter; a delta without a rank is one that the survey found unchanged or too small.
    """

    def __init__(
        self,
        plan: Plan,
        settings: DeltaSettings,
        norm: OutputNorm | None,
        choices: Sequence[Choice],
        vectors: Sequence[Checkpoint],
    ) -> None:
        super().__init__(len(plan.items), DeltaReader(plan.pairing, settings))
        self._plan, self._settings, self._norm = plan, settings, norm
        self._choices, self._vectors = choices, vectors
        self._weights_of = norm.weights_of if norm else unweighted

    def __iter__(self) -> Iterator[tuple[Outcome, ...]]:
        return ordered_map(self._outcomes, self._plan.items)

    def drafts(self) -> Iterator[StoredDelta]:
        """Yield what the first choice stores for each tensor, without measuring the matrices."""
        return ordered_map(self._draft, self._plan.items)

    def _draft(self, item: PlanItem) -> StoredDelta:
        choice = self._choices[0]
        if item.action is Action.DECOMPOSE and any(choice.widths.get(item.name, ())) and choice.ranks[item.name]:
            weights = self._weights_of(module_of(item.name))
            return item.name, lora_module(item, *self._rounded(item, choice, weights, weights.whitening()))
        return self._outcomes(item)[0].stored()

    def _outcomes(self, item: PlanItem) -> tuple[Outcome, ...]:
        self._reader.hash(item)
        delta = self._reader.read(item)
        if isinstance(delta, Outcome):
            return (delta,) * len(self._choices)
        if item.action is Action.KEEP_DENSE:
            return tuple(self._vector(item, delta, choice.widths[item.name][0]) for choice in self._choices)
        weights = self._weights_of(module_of(item.name))
        whitening = weights.whitening()
        return tuple(self._matrix(item, delta, choice, weights, whitening) for choice in self._choices)

    def _vector(self, item: PlanItem, delta: Delta, width: int) -> Outcome:
        if width == 0:
            return left_out(item, NOT_WORTH, delta.measure)
        moment = self._norm.vector_moment_of(item.name) if self._norm else None
        variances = None if moment is None else moment.variances().float()
        return self._reader.rounded(item, delta, item.reason, width, variances)

    def _matrix(self, item: PlanItem, delta: Delta, choice: Choice, weights: Weights, whitening: Whitening) -> Outcome:
        rank, widths = choice.ranks[item.name], choice.widths.get(item.name)
        if rank == 0:
            return left_out(item, NOT_WORTH, delta.measure)
        if widths is not None:
            if rank is None:
                return self._reader.rounded(item, delta, _SMALLER, widths[0])
            return low_rank(item, delta, *self._rounded(item, choice, weights, whitening))
        if rank is None:
            return self._reader.dense(item, delta, _SMALLER)
        svd = stored_vectors(self._vectors, item.name).first(rank)
        try:
            factors = weighted_factors(svd, self._settings.dtype, whitening)
        except InputError as error:
            raise InputError(f"{item.name}: ", *error.args) from None
        return low_rank(item, delta, Factors(factors.up.contiguous(), factors.down.contiguous()))

    def _rounded(self, item: PlanItem, choice: Choice, weights: Weights, whitening: Whitening) -> tuple[Factors, Grid]:
        vectors = stored_vectors(self._vectors, item.name)
        counts = packed_factors(vectors, choice.widths[item.name], whitening, weights)
        return counts.factors(), counts.grid
