"""Extraction in two passes, where ranks depend on all matrices together, or on what an error costs in the output.

The first pass decomposes every matrix once, up to a highest rank, keeps the vectors in a scratch file, and returns the
spectra. Ranks are chosen from these for all adapters that are to come out. The second pass cuts the vectors off at the
chosen ranks, rounds them, and measures them against the deltas.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lbm_lora.checkpoint import Checkpoint, Fingerprint, SafetensorsWriter, TensorSpec
from lbm_lora.errors import InputError
from lbm_lora.extract.plan import Action, Plan, PlanItem
from lbm_lora.extract.reading import Delta, Outcome, Reader, Settings, left_out, low_rank
from lbm_lora.extract.run import seed_of
from lbm_lora.factorize import (
    Factors,
    Measure,
    Moment,
    WeightedSVD,
    Weights,
    Whitening,
    matrix_shape,
    rank_above,
    rounding_edge,
    to_matrix,
    weighted_factors,
    weighted_svd,
)
from lbm_lora.naming import ModuleName, ParamName, module_of
from lbm_lora.parallel import ordered_map

Choices = Mapping[ParamName, int | None]
"""Rank of each decomposed delta; 0 is nothing, None is the dense delta."""

WeightsOf = Callable[[ModuleName], Weights]

_LEFT, _VALUES, _RIGHT = ".left", ".values", ".right"


def unweighted(_: ModuleName) -> Weights:
    """All errors of a matrix cost the same."""
    return Weights()


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the first pass found of one delta.

    Attributes:
        squares: (k,), fp64: what each rank takes off the squared error, in the weighted norm.
        rest: the squared error that rank k leaves.
        rounding: (k,), fp64: the squared error that each rank's own rounding to the stored dtype is expected to add.
        worth: ranks that are more than the rounding of a 16-bit checkpoint; k where that is not known.
    """

    item: PlanItem
    squares: Tensor
    rest: float
    rounding: Tensor
    worth: int


@dataclass(frozen=True)
class Surveyed:
    """The result of the first pass.

    Attributes:
        found: every delta that is to be decomposed; those that are unchanged or too small are not among them.
        others: the measures of all other tensors: stored whole, or left out. In a weighted norm they count nothing.
    """

    found: list[Found]
    others: Measure


@dataclass(frozen=True)
class _Decomposed:
    found: Found
    svd: WeightedSVD


class Survey:
    """The first pass.

    Args:
        plan: whose decomposed items' `rank` is the highest that may be chosen.
        weights_of: what an error in a module costs.
        scratch: where the vectors are put, in fp32.
    """

    def __init__(self, plan: Plan, settings: Settings, weights_of: WeightsOf, scratch: Path) -> None:
        self._plan = plan
        self._settings = settings
        self._weights_of = weights_of
        self._reader = Reader(plan.pairing, settings)
        specs: dict[str, TensorSpec] = {}
        for item in plan.of(Action.DECOMPOSE):
            rank, (rows, columns) = item.rank or 1, matrix_shape(item.shape)
            specs[item.name + _LEFT] = TensorSpec(torch.float32, (rows, rank))
            specs[item.name + _VALUES] = TensorSpec(torch.float32, (rank,))
            specs[item.name + _RIGHT] = TensorSpec(torch.float32, (rank, columns))
        self._file = SafetensorsWriter(scratch, specs)

    def __len__(self) -> int:
        return len(self._plan.items)

    def run(self, on_tensor: Callable[[], None] = lambda: None) -> Surveyed:
        """Read every delta once; `on_tensor` is called after each, for a progress bar."""
        found: list[Found] = []
        others = Measure()
        with self._file:
            for made in ordered_map(self._decompose, self._plan.items):
                if isinstance(made, Outcome):
                    others += made.row.measure
                else:
                    name = made.found.item.name
                    self._file.write(name + _LEFT, made.svd.left)
                    self._file.write(name + _VALUES, made.svd.values)
                    self._file.write(name + _RIGHT, made.svd.right)
                    found.append(made.found)
                on_tensor()
        return Surveyed(found, others)

    def _decompose(self, item: PlanItem) -> _Decomposed | Outcome:
        delta = self._reader.read(item)
        if isinstance(delta, Outcome):
            return delta
        matrix = to_matrix(delta.values)
        weights = self._weights_of(module_of(item.name))
        try:
            svd = weighted_svd(matrix, item.rank or 1, weights.whitening(), seed=seed_of(item.name))
        except InputError as error:
            raise InputError(f"{item.name}: {error}") from None
        worth = len(svd.values)
        if weights == Weights():  # values of another norm cannot be compared with the noise
            worth = max(1, rank_above(svd.values, rounding_edge(to_matrix(self._plan.pairing.tuned.read(item.name)))))
        found = Found(
            item=item,
            squares=svd.values.double().square(),
            rest=svd.rest,
            rounding=_rounding(svd, weights, self._settings.dtype),
            worth=worth,
        )
        return _Decomposed(found, svd)


class Emission:
    """The second pass: iterate it to the end, then read the fingerprints.

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
        left, values, right = (self._scratch.read(name + ending) for ending in (_LEFT, _VALUES, _RIGHT))
        return WeightedSVD(left, values, right, rest=0.0)


def _rounding(svd: WeightedSVD, weights: Weights, dtype: torch.dtype) -> Tensor:
    """What rounding both factors adds to the squared error, rank by rank.

    The rounding errors of a factor's elements are independent, so only the diagonals of the moments count. Refitting
    `up` takes some of it back, which is left aside.
    """
    share = _ROUNDING.get(dtype, 0.0)
    if not share:
        return torch.zeros_like(svd.values, dtype=torch.float64)
    across = weights.scale * (_variances(weights.outputs, svd.left.shape[0]) @ svd.left.double().square())
    along = svd.right.double().square() @ _variances(weights.inputs, svd.right.shape[1])
    return share * svd.values.double().square() * (across + along)


def _variances(moment: Moment | None, count: int) -> Tensor:
    """The diagonal of a moment, for each row or column of the matrix."""
    if moment is None:
        return torch.ones(count, dtype=torch.float64)
    return moment.variances().repeat_interleave(moment.repeat)


_ROUNDING = {torch.bfloat16: 2.0**-14 * 0.541 / 12, torch.float16: 2.0**-20 * 0.541 / 12}
"""Mean squared relative error of rounding values with evenly spread logarithms: ulp^2 / 12 over the value squared."""
