"""Carry out a plan: read, subtract, factorize, round, measure; a few tensors at a time, in constant memory."""

from collections.abc import Iterator, Sequence

import xxhash

from lbm_lora.checkpoint import Fingerprint
from lbm_lora.errors import InputError
from lbm_lora.extract.plan import Plan, PlanItem
from lbm_lora.extract.reading import Delta, Outcome, Reader, Settings, low_rank
from lbm_lora.factorize import Factors, factorize_ranks, to_matrix
from lbm_lora.naming import ParamName
from lbm_lora.parallel import ordered_map


class Extraction:
    """One pass over both files. Iterate it to the end, then read the fingerprints.

    Args:
        plans: one for each adapter that is to come out; they differ in their ranks alone. A matrix is decomposed once
            for all of them, so a lower rank may differ in its last digits from that of a run of its own.
    """

    def __init__(self, plans: Sequence[Plan], settings: Settings) -> None:
        self._plans = plans
        self._settings = settings
        self._reader = Reader(plans[0].pairing, settings)

    def __len__(self) -> int:
        return len(self._plans[0].items)

    def __iter__(self) -> Iterator[tuple[Outcome, ...]]:
        """The outcomes of one tensor, one for each plan, tensor by tensor."""
        return ordered_map(self._outcomes, zip(*(plan.items for plan in self._plans), strict=True))

    def fingerprints(self) -> tuple[Fingerprint, Fingerprint]:
        """Of base and tuned, after the pass."""
        return self._reader.fingerprints()

    def _outcomes(self, items: tuple[PlanItem, ...]) -> tuple[Outcome, ...]:
        self._reader.hash(items[0])
        found = self._reader.read(items[0])
        if isinstance(found, Outcome):
            return (found,) * len(items)
        try:
            factors = self._decompose(items, found)
        except InputError as error:
            raise InputError(f"{items[0].name}: {error}") from None
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


def seed_of(name: ParamName) -> int:
    """The seed of a tensor's random start: of its name alone, so that order and company do not matter."""
    return xxhash.xxh3_64_intdigest(name.encode()) >> 1
