"""The second of two passes: the vectors of a survey, cut off at chosen ranks, as the tensors of files."""

from collections.abc import Iterator, Mapping, Sequence

from lbm_lora.checkpoint import Checkpoint, Fingerprint
from lbm_lora.errors import InputError
from lbm_lora.extract.plan import Plan, PlanItem
from lbm_lora.extract.reading import Delta, Outcome, Reader, Settings, left_out, low_rank
from lbm_lora.extract.survey import LEFT, RIGHT, VALUES, WeightsOf
from lbm_lora.factorize import Factors, WeightedSVD, Whitening, weighted_factors
from lbm_lora.naming import ParamName, module_of
from lbm_lora.parallel import ordered_map

Choices = Mapping[ParamName, int | None]
"""Rank of each decomposed delta; 0 is nothing, None is the dense delta."""


class Emission:
    """Iterate it to the end, then read the fingerprints.

    Args:
        choices: one for each adapter that is to come out; a decomposed delta without a choice is what the first pass
            found it to be: unchanged, or too small.
        scratch: the file of the first pass.
    """

    def __init__(
        self,
        plan: Plan,
        settings: Settings,
        weights_of: WeightsOf,
        choices: Sequence[Choices],
        scratch: Checkpoint,
    ) -> None:
        self._plan = plan
        self._settings = settings
        self._weights_of = weights_of
        self._choices = choices
        self._scratch = scratch
        self._reader = Reader(plan.pairing, settings)

    def __len__(self) -> int:
        return len(self._plan.items)

    def __iter__(self) -> Iterator[tuple[Outcome, ...]]:
        """The outcomes of one tensor, one for each choice, tensor by tensor."""
        return ordered_map(self._outcomes, self._plan.items)

    def fingerprints(self) -> tuple[Fingerprint, Fingerprint]:
        """Of base and tuned, after the pass."""
        return self._reader.fingerprints()

    def _outcomes(self, item: PlanItem) -> tuple[Outcome, ...]:
        self._reader.hash(item)
        delta = self._reader.read(item)
        if isinstance(delta, Outcome):
            return (delta,) * len(self._choices)
        whitening = self._weights_of(module_of(item.name)).whitening()
        return tuple(self._outcome(item, delta, choices[item.name], whitening) for choices in self._choices)

    def _outcome(self, item: PlanItem, delta: Delta, rank: int | None, whitening: Whitening) -> Outcome:
        if rank is None:
            return self._reader.whole(item, delta, "stored whole: cheaper than its factors")
        if rank == 0:
            return left_out(item, "not worth its bytes", delta.measure)
        svd = self._stored(item.name).first(rank)
        try:
            factors = weighted_factors(svd, self._settings.dtype, whitening)
        except InputError as error:
            raise InputError(f"{item.name}: {error}") from None
        return low_rank(item, delta, Factors(factors.up.contiguous(), factors.down.contiguous()))

    def _stored(self, name: ParamName) -> WeightedSVD:
        left, values, right = (self._scratch.read(name + ending) for ending in (LEFT, VALUES, RIGHT))
        return WeightedSVD(left, values, right, rest=0.0)
