"""Fewer ranks for products: the spectrum of each from its factors, a choice by a rule, and the rounded factors.

Nothing is kept between the two passes but the spectra: a product is decomposed again where it is stored, which takes
less than writing its vectors. Memory depends on the ranks; a matrix is built only where that takes no more than
its factors.
"""

import json
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from lbm_lora.adapter import (
    METADATA_ROOM,
    AdapterBuilder,
    AdapterMetadata,
    AdapterWriter,
    LedgerRow,
    LoraModule,
    Outcome,
    Status,
    StoredDelta,
    module_bytes,
    stored_bytes,
)
from lbm_lora.combine.products import ROUNDING, Products, difference, product_norm
from lbm_lora.errors import InputError
from lbm_lora.factorize import (
    Factors,
    Measure,
    Weights,
    dense_dtype,
    down_shape,
    has_matrix_view,
    rank_above,
    rounded,
    stored_factors,
    up_shape,
    weighted_factors,
    weighted_product_svd,
)
from lbm_lora.naming import ParamName, leaf_of, module_of
from lbm_lora.progress import SILENT, Progress
from lbm_lora.ranks import (
    Choice,
    Chooser,
    DeltaSpectrum,
    OutputNorm,
    RankAllocator,
    WeightsOf,
    dense_error,
    predictor_of,
    rounding_error,
    unweighted,
)
from lbm_lora.runtime import ordered_map

KEPT = "kept as it is"
"""Reason of a delta whose ranks are all wanted."""


@dataclass(frozen=True, kw_only=True)
class Shrinking:
    """Products, and how they are stored.

    Attributes:
        dtype: dtype of stored factors and dense deltas; with int8, dense deltas are fp16.
        left_out: params that are not stored, with the reason.
        keeps_factors: store the factors of a product as they are, without a decomposition, at their own rank.
    """

    products: Products
    dtype: torch.dtype
    prefix: str
    weights_of: WeightsOf = unweighted
    left_out: Mapping[ParamName, str]
    keeps_factors: bool = False

    def matrices(self) -> list[ParamName]:
        """The params that get a rank, also those that every LoRA has dense."""
        shapes = self.products.shapes.items()
        return [name for name, shape in shapes if name not in self.left_out and _is_matrix(name, shape)]

    def dense(self) -> dict[ParamName, tuple[int, ...]]:
        """Shapes of the params that stay dense: biases, norms."""
        shapes = self.products.shapes.items()
        return {name: shape for name, shape in shapes if name not in self.left_out and not _is_matrix(name, shape)}

    def survey(self, progress: Progress = SILENT) -> tuple[list[DeltaSpectrum], Measure]:
        """Decompose every matrix once.

        Returns:
            The spectra of the matrices, in the weighted norm, and the measure of all other deltas.
        """
        names, others = self.matrices(), [*self.dense(), *self.left_out]
        progress.start(len(names) + len(others), "finding ranks")
        spectra: list[DeltaSpectrum] = []
        for spectrum in ordered_map(self._spectrum, names):
            spectra.append(spectrum)
            progress.advance()
        measure = Measure()
        for outcome in ordered_map(partial(self.outcome, rank=None), others):
            measure += outcome.row.measure
            progress.advance()
        return spectra, measure

    def outcomes(self, choices: Sequence[Choice]) -> Iterator[tuple[Outcome, ...]]:
        """Yield what each param becomes under each choice, in the order of the LoRAs."""
        ranks = [choice.ranks for choice in choices]
        return ordered_map(lambda name: self._several(name, [one.get(name) for one in ranks]), self.products.shapes)

    def store(
        self, path: Path | None, ranks: Mapping[ParamName, int | None], header: AdapterMetadata, stack: ExitStack
    ) -> AdapterWriter | AdapterBuilder:
        """Return a writer for the deltas: to a file, or to memory if `path` is None."""
        if path is None:
            return AdapterBuilder(self.prefix, self.dtype, header)
        shapes = self.products.shapes
        factors = {name: rank for name, rank in ranks.items() if rank}
        dense = {
            name: shape
            for name, shape in shapes.items()
            # a matrix that the LoRA has dense may stay so at any rank
            if name not in self.left_out and (ranks.get(name) is None or self._is_given_dense(name))
        }
        writer = AdapterWriter(
            path,
            self.prefix,
            self.dtype,
            {module_of(name): shapes[name] for name in factors},
            {module_of(name): rank for name, rank in factors.items()},
            dense,
            header,
        )
        return stack.enter_context(writer)

    @contextmanager
    def deltas_of(self, choice: Choice) -> Generator[Iterator[StoredDelta]]:
        """Open the deltas of a choice as they would be stored, for a trial."""
        yield (outcome.stored() for (outcome,) in self.outcomes([choice]))

    def outcome(self, name: ParamName, rank: int | None) -> Outcome:
        """Return what one param becomes.

        Args:
            rank: 0 is nothing, None the dense delta.
        """
        return self._several(name, [rank])[0]

    def _several(self, name: ParamName, ranks: Sequence[int | None]) -> tuple[Outcome, ...]:
        try:
            if name in self.left_out or not _is_matrix(name, self.products.shapes[name]):
                return (self._without_rank(name),) * len(ranks)
            return self._matrices(name, ranks)
        except InputError as error:
            raise InputError(f"{name}: ", *error.args) from None

    def _without_rank(self, name: ParamName) -> Outcome:
        """A delta that is left out, or stays dense whatever the ranks are."""
        if name in self.left_out:
            size = self.products.norm(name)
            return Outcome(self._row(name, Status.EXCLUDED, self.left_out[name], size, size))
        return self._dense(name, f"{len(self.products.shapes[name])}-dimensional")

    def _dense(self, name: ParamName, reason: str) -> Outcome:
        delta = self.products.dense(name)
        if delta is None or not delta.any():
            return Outcome(self._row(name, Status.UNCHANGED, "the delta is zero", 0.0, 0.0))
        kept = rounded(delta, dense_dtype(self.dtype))
        size, lost = (float(torch.linalg.vector_norm(one)) for one in (delta, delta - kept.float()))
        return Outcome(self._row(name, Status.DENSE, reason, size, lost), dense=kept)

    def _matrices(self, name: ParamName, ranks: Sequence[int | None]) -> tuple[Outcome, ...]:
        """A matrix at several ranks, decomposed once."""
        factors = self.products.factors(name)
        if factors is None:
            return (Outcome(self._row(name, Status.UNCHANGED, "the delta is zero", 0.0, 0.0)),) * len(ranks)
        size = product_norm(factors)
        highest = self.products.bound(name) if self._is_single(name) else None
        whitening = self.weights_of(module_of(name)).whitening()
        svd = None
        made: list[Outcome] = []
        for rank in ranks:
            if rank == 0:
                made.append(Outcome(self._row(name, Status.EXCLUDED, "not worth the bytes", size, size)))
            elif highest is not None and rank is not None and rank >= highest:
                made.append(self._as_it_is(name, factors, size))
            elif rank is None:
                made.append(self._dense(name, "stored dense: smaller than its factors"))
            elif self.keeps_factors:
                kept = stored_factors(factors.up, factors.down, self.dtype)
                made.append(self._module(name, self._module_of(name, kept), factors, size, KEPT))
            else:
                svd = svd or weighted_product_svd(factors, whitening)
                kept = weighted_factors(svd.first(rank), self.dtype, whitening)
                made.append(self._module(name, self._module_of(name, kept), factors, size, "fewer ranks"))
        return tuple(made)

    def _module(self, name: ParamName, module: LoraModule, factors: Factors, size: float, reason: str) -> Outcome:
        row = self._row(name, Status.LORA, reason, size, difference(factors, module.factors()), module.rank)
        return Outcome(row, module=module)

    def _module_of(self, name: ParamName, factors: Factors) -> LoraModule:
        shape, rank = self.products.shapes[name], factors.rank
        down = factors.down.contiguous().reshape(down_shape(shape, rank))
        up = factors.up.contiguous().reshape(up_shape(shape, rank))
        return LoraModule(module_of(name), down, up, float(rank))

    def _is_given_dense(self, name: ParamName) -> bool:
        """Whether a matrix is that of one LoRA at scale 1, which has it dense."""
        return self._is_single(name) and self.products.summands[0].adapter.module_at(name) is None

    def _is_single(self, name: ParamName) -> bool:
        """Whether a delta is that of one LoRA at scale 1."""
        return len(self.products.summands) == 1 and self.products.summands[0].scales.get(name) == 1.0

    def _as_it_is(self, name: ParamName, factors: Factors, size: float) -> Outcome:
        """The delta of a single LoRA, neither decomposed nor, in the same dtype, rounded again."""
        module = self.products.summands[0].adapter.module_at(name)
        if module is None:
            return self._dense(name, KEPT)
        kept = module.cast(self.dtype)
        if self._keeps_bits(name):
            return Outcome(self._row(name, Status.LORA, KEPT, size, 0.0, kept.rank), module=kept)
        return self._module(name, kept, factors, size, KEPT)

    def _keeps_bits(self, name: ParamName) -> bool:
        """Whether the delta of a single LoRA, as it is, has the stored dtype already."""
        if not self._is_single(name) or self.dtype == torch.int8:
            return False
        module = self.products.summands[0].adapter.module_at(name)
        dense = self.products.summands[0].adapter.dense.get(name)
        given = [] if dense is None else [dense]
        return all(one.dtype == self.dtype for one in ([module.up, module.down] if module else given))

    def _spectrum(self, name: ParamName) -> DeltaSpectrum:
        shape, factors = self.products.shapes[name], self.products.factors(name)
        if factors is None:
            nothing = torch.zeros(0, dtype=torch.float64)
            return DeltaSpectrum(
                name=name, shape=shape, squares=nothing, rest=0.0, rounding=nothing, dense=math.inf, worth=0
            )
        weights = self.weights_of(module_of(name))
        whitening = weights.whitening()
        svd = weighted_product_svd(factors, whitening)
        return DeltaSpectrum(
            name=name,
            shape=shape,
            squares=svd.values.double().square(),
            rest=0.0,
            rounding=rounding_error(svd, weights, self.dtype),
            dense=self._dense_error(name, factors, weights),
            worth=rank_above(svd.values, ROUNDING * float(svd.values[0])),
            is_kept=self._keeps_bits(name) and len(svd.values) >= self.products.bound(name),
        )

    def _dense_error(self, name: ParamName, factors: Factors, weights: Weights) -> float:
        """The squared error of the dense delta; infinite where the factors are smaller."""
        shape = self.products.shapes[name]
        highest = module_bytes(self.prefix, module_of(name), shape, self.products.bound(name), self.dtype)
        if stored_bytes(self.prefix, name, shape, self.dtype) > highest:
            return math.inf
        return dense_error(factors.product(), weights, dense_dtype(self.dtype))

    def _row(
        self, name: ParamName, status: Status, reason: str, size: float, lost: float, rank: int | None = None
    ) -> LedgerRow:
        shape = self.products.shapes[name]
        measure = Measure(numel=torch.Size(shape).numel(), delta_sq=size**2, error_sq=lost**2)
        return LedgerRow(name=name, status=status, reason=reason, shape=shape, rank=rank, measure=measure)


def _is_matrix(name: ParamName, shape: tuple[int, ...]) -> bool:
    return leaf_of(name) == "weight" and has_matrix_view(shape)


def chooser_of(
    shrinking: Shrinking,
    headers: Sequence[AdapterMetadata],
    norm: OutputNorm | None = None,
    progress: Progress = SILENT,
    *,
    can_leave_out: bool = True,
) -> Chooser:
    """Survey the products, and return a chooser of their ranks.

    Args:
        headers: metadata of each file, as far as it is known.
    """
    spectra, others = shrinking.survey(progress)
    allocator = RankAllocator(
        spectra,
        shrinking.dtype,
        prefix=shrinking.prefix,
        dense=shrinking.dense(),
        overhead=max(len(json.dumps(header.to_header())) for header in headers) + METADATA_ROOM,
        others=Measure() if norm else others,
        can_leave_out=can_leave_out,
    )
    return Chooser(allocator, predictor_of(allocator, norm), shrinking.deltas_of)
