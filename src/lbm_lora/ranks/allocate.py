"""Allocate a file's bytes to all deltas: ranks, or in a packed file bits for each rank and each dense delta."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float64

from lbm_lora.adapter import module_bytes, rank_bytes, stored_bytes
from lbm_lora.adapter.packed_index import Index
from lbm_lora.errors import ConfigError, InputError, Option
from lbm_lora.factorize import (
    FixedRank,
    Measure,
    Spectrum,
    WidthAllocation,
    WidthCosts,
    allocate_error,
    allocate_widths,
    allocate_widths_for,
    curve,
    energy_rank,
    error_rank,
)
from lbm_lora.naming import ModuleName, ParamName, module_of
from lbm_lora.ranks.spectrum import DeltaSpectrum, WidthSpectrum

_ROUNDS = 8  # corrections of the bytes of the index, which depends on the choice
_CLOSE = 0.002  # of a file's bytes that may stay unused
_SPARE = 1.002  # of the bytes that a choice has taken, for those of the next one


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Ranks of one adapter, with their expected size and error.

    Attributes:
        ranks: rank of each decomposed delta; 0 is nothing, None is the dense delta.
        error_sq: squared error in the norm of the spectra, including rounding to the stored dtype.
        widths: for a packed file, the bits of each rank of each decomposed delta, 0 for those left out, and of each
            dense delta.
        data_bytes: of a packed file, the expected bytes of its data; they are a part of `nbytes`.
    """

    ranks: dict[ParamName, int | None]
    nbytes: int
    error_sq: float
    widths: Mapping[ParamName, tuple[int, ...]] = field(default_factory=dict[ParamName, tuple[int, ...]])
    data_bytes: int = 0

    def highest_rank(self, name: ParamName) -> int | None:
        """Return the highest rank of a delta's decomposition that is used, 0 for none; None if it is stored dense."""
        rank = self.ranks.get(name, 0)
        if rank is None or name not in self.widths:
            return rank
        return max((index for index, width in enumerate(self.widths[name], 1) if width), default=0)


class Allocator:
    """Choose what to store of all deltas, from their spectra and under any rule.

    Attributes:
        energy_sq: squared error of a file without any delta.
    """

    energy_sq: float

    def within(self, nbytes: Sequence[int]) -> list[Choice]:
        """Return the choices with the least error for files of these sizes."""
        raise NotImplementedError

    def error(self, target_sq: float, reference_sq: float) -> Choice:
        """Return the smallest choice with a squared error of at most `target_sq`.

        An error message states errors relative to `reference_sq`.
        """
        raise NotImplementedError

    def fixed(self, ranks: FixedRank) -> Choice:
        """Return the choice of one rank for linear weights and one for convs."""
        raise needs_limit()

    def module_error(self, relative_error: float) -> Choice:
        """Return the smallest rank with this relative error for each delta, in the norm of the spectra."""
        raise needs_limit()

    def energy(self, share: float) -> Choice:
        """Return the smallest rank that keeps this share of the energy of each delta, in the norm of the spectra."""
        raise needs_limit()


class RankAllocator(Allocator):
    """Choose ranks.

    Args:
        dense: shapes of the deltas that are stored dense in any case.
        overhead: bytes of the file besides its tensors' data and header entries.
        others: measures of all other tensors; zero if the spectra use an output norm, in which they were not measured.
        can_leave_out: whether the caller has options that leave tensors out, for messages.
    """

    def __init__(
        self,
        spectra: Sequence[DeltaSpectrum],
        dtype: torch.dtype,
        *,
        prefix: str,
        dense: Mapping[ParamName, tuple[int, ...]],
        overhead: int,
        others: Measure,
        can_leave_out: bool = True,
    ) -> None:
        self._can_leave_out = can_leave_out
        self._deltas, self._prefix, self._dtype, self._others = spectra, prefix, dtype, others
        self._spectra = [self._rounded(delta) for delta in spectra]
        self._exact = [self._of(one, np.minimum.accumulate(one.squares.numpy()), one.rest) for one in spectra]
        self.fixed_bytes = overhead + sum(stored_bytes(prefix, name, shape, dtype) for name, shape in dense.items())
        self.energy_sq = sum(float(delta.squares.sum()) + delta.rest for delta in spectra) + others.delta_sq
        self._least_sq = others.error_sq + sum(_least(delta) for delta in spectra)

    def within(self, nbytes: Sequence[int]) -> list[Choice]:
        smallest = min(nbytes)
        if smallest <= self.fixed_bytes:
            ways = (", or leave tensors out: ", Option("exclude"), ", ", Option("dense", is_off=True))
            raise InputError(
                Option("max_size"),
                f" {megabytes(smallest)}: biases, norms and the header alone take "
                f"{megabytes(self.fixed_bytes)}. Allow more",
                *(ways if self._can_leave_out else ()),
                ".",
            )
        budgets = [size - self.fixed_bytes for size in nbytes]
        return [self._choice(found.ranks) for found in curve(self._spectra, budgets)]

    def error(self, target_sq: float, reference_sq: float) -> Choice:
        found = allocate_error(self._spectra, target_sq - self._least_sq)
        if found.error_sq + self._least_sq > target_sq:
            raise InputError(
                "no ranks reach an error this small: the lowest relative error is "
                f"{math.sqrt((found.error_sq + self._least_sq) / reference_sq):.3g}, got "
                f"{math.sqrt(target_sq / reference_sq):.3g}. Allow a larger error, or store more tensors or "
                "more precision (",
                Option("save_precision"),
                ").",
            )
        return self._choice(found.ranks)

    def fixed(self, ranks: FixedRank) -> Choice:
        return self._choice([min(ranks.rank_of(delta.shape), len(delta.squares)) for delta in self._deltas])

    def module_error(self, relative_error: float) -> Choice:
        return self._choice([error_rank(spectrum, relative_error) for spectrum in self._exact])

    def energy(self, share: float) -> Choice:
        return self._choice([energy_rank(spectrum, share) for spectrum in self._exact])

    def _choice(self, ranks: Sequence[int | None]) -> Choice:
        nbytes, error_sq = self.fixed_bytes, self._others.error_sq
        for delta, spectrum, rank in zip(self._deltas, self._exact, ranks, strict=True):
            nbytes += spectrum.size(rank)
            is_given = delta.is_kept and rank is not None and rank >= len(delta.squares)
            error_sq += 0.0 if is_given else _error_sq(delta, rank)
        names = [delta.name for delta in self._deltas]
        return Choice(ranks=dict(zip(names, ranks, strict=True)), nbytes=nbytes, error_sq=error_sq)

    def _rounded(self, delta: DeltaSpectrum) -> Spectrum:
        """Return the spectrum of the ranks that are worth their bytes, with errors relative to the dense delta's.

        Rounding a rank removes some of its gain. If gains then rise, the larger one replaces those before it, so no
        choice leaves more error than its spectrum says.
        """
        gains = (delta.squares - delta.rounding).clamp(min=0)[: delta.worth].numpy()
        last = max(_error_sq(delta, delta.worth) - _least(delta), 0.0)
        return self._of(delta, np.maximum.accumulate(gains[::-1])[::-1], last)

    def _of(self, delta: DeltaSpectrum, squares: Float64[np.ndarray, " k"], rest: float) -> Spectrum:
        dense = stored_bytes(self._prefix, delta.name, delta.shape, self._dtype)
        return Spectrum(
            squares=squares,
            rest=rest,
            rank_bytes=rank_bytes(delta.shape, self._dtype),
            fixed_bytes=module_bytes(self._prefix, module_of(delta.name), delta.shape, 0, self._dtype),
            dense_bytes=dense if delta.dense < math.inf else None,
        )


def _error_sq(delta: DeltaSpectrum, rank: int | None) -> float:
    """Return the squared error left by a rank, by nothing (0), or by the dense delta (None), including rounding."""
    if rank is None:
        return delta.dense
    return delta.rest + float(delta.squares[rank:].sum()) + float(delta.rounding[:rank].sum())


def _least(delta: DeltaSpectrum) -> float:
    """Return the squared error of the dense delta, or of the highest rank if dense is not a choice."""
    return delta.dense if delta.dense < math.inf else _error_sq(delta, delta.worth)


class WidthAllocator(Allocator):
    """Choose the bits of every rank and every dense delta, for a packed file.

    Args:
        overhead: bytes of the file besides index and data.
    """

    def __init__(self, spectra: Sequence[WidthSpectrum], *, prefix: str, overhead: int) -> None:
        self._spectra, self._prefix, self._overhead = spectra, prefix, overhead
        self._costs = [spectrum.costs for spectrum in spectra]
        self._more = 1.0
        self.energy_sq = sum(float(costs.errors[0].sum()) + costs.rest for costs in self._costs)
        self.fixed_bytes = self._choice(allocate_widths(self._costs, 0)).nbytes

    def expect(self, choice: Choice, data_bytes: int) -> None:
        """Expect more bytes of all further choices, by what the data of this one has taken."""
        before, self._more = self._more, self._more * _SPARE * data_bytes / choice.data_bytes
        share = self._more / before
        self._costs = [
            costs if len(spectrum.shape) == 1 else _with_bytes(costs, share)
            for spectrum, costs in zip(self._spectra, self._costs, strict=True)
        ]

    def within(self, nbytes: Sequence[int]) -> list[Choice]:
        return [self._within(one) for one in nbytes]

    def _within(self, nbytes: int) -> Choice:
        """Return the choice for a size; the index takes fewer bytes the less there is."""
        budget = nbytes - self.fixed_bytes
        best: Choice | None = None
        for _ in range(_ROUNDS):
            choice = self._choice(allocate_widths(self._costs, max(0, budget)))
            if choice.nbytes <= nbytes and (best is None or choice.error_sq < best.error_sq):
                best = choice
            if best is not None and abs(nbytes - choice.nbytes) <= _CLOSE * nbytes:
                break
            budget += nbytes - choice.nbytes - round(_CLOSE / 4 * nbytes)
        if best is None:
            raise InputError(
                Option("max_size"),
                f" {megabytes(nbytes)}: the smallest file takes {megabytes(self.fixed_bytes)}. Allow more, or leave "
                "tensors out: ",
                Option("exclude"),
                ".",
            )
        return best

    def error(self, target_sq: float, reference_sq: float) -> Choice:
        found = allocate_widths_for(self._costs, target_sq)
        if found.error_sq > target_sq:
            raise InputError(
                "no bits reach an error this small: the lowest relative error is "
                f"{math.sqrt(found.error_sq / reference_sq):.3g}, got {math.sqrt(target_sq / reference_sq):.3g}. "
                "Allow a larger error, or store fp32: ",
                Option("save_precision", "float"),
                ".",
            )
        budget = 32
        most = sum(int(costs.nbytes.max()) * costs.errors.shape[1] for costs in self._costs)
        while not _is_something(found) and budget < 2 * most:  # a file without any delta is none
            found, budget = allocate_widths(self._costs, budget), 2 * budget
        return self._choice(found)

    def _choice(self, found: WidthAllocation) -> Choice:
        widths: dict[ParamName, tuple[int, ...]] = {}
        ranks: dict[ParamName, int | None] = {}
        modules: dict[ModuleName, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        vectors: dict[ParamName, tuple[tuple[int, ...], int]] = {}
        for spectrum, chosen, dense in zip(self._spectra, found.widths, found.dense, strict=True):
            name, shape = spectrum.name, spectrum.shape
            widths[name] = (dense,) if chosen is None else chosen
            bits = tuple(width for width in widths[name] if width)
            if not spectrum.is_dense:
                ranks[name] = None if chosen is None else len(bits)
            if bits and ranks.get(name) is not None:
                modules[module_of(name)] = shape, bits
            elif bits:
                vectors[name] = shape, bits[0]
        index = Index(self._prefix, modules, vectors)
        data_bytes = index.expected_bytes(self._more)
        return Choice(
            ranks=ranks,
            nbytes=self._overhead + len(index.encoded()) + data_bytes,
            error_sq=found.error_sq,
            widths=widths,
            data_bytes=data_bytes,
        )


def _with_bytes(costs: WidthCosts, share: float) -> WidthCosts:
    dense = None if costs.dense_bytes is None else np.ceil(share * costs.dense_bytes).astype(np.int64)
    return replace(costs, nbytes=np.ceil(share * costs.nbytes).astype(np.int64), dense_bytes=dense)


def _is_something(found: WidthAllocation) -> bool:
    return any(widths is None or any(widths) for widths in found.widths)


def needs_limit() -> ConfigError:
    """Return the error for bits without a limit that weighs all layers against each other."""
    return ConfigError(
        Option("save_precision", "auto"),
        " chooses the ranks and their bits together. Give a size or an error: ",
        Option("max_size"),
        ", ",
        Option("max_output_error"),
        " or ",
        Option("min_psnr"),
        ".",
    )


def megabytes(nbytes: int) -> str:
    """Format bytes as `12.3 MB`, or in kB below 1 MB."""
    return f"{nbytes / 1e6:,.1f} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:,.1f} kB"
