"""Allocate a file's bytes to all deltas, from the spectra of a survey."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float64

from lbm_lora.adapter import module_bytes, rank_bytes, stored_bytes
from lbm_lora.errors import InputError, Option
from lbm_lora.factorize import FixedRank, Measure, Spectrum, curve, energy_rank, error_rank
from lbm_lora.factorize import allocate_error as cheapest_with
from lbm_lora.naming import ParamName, module_of
from lbm_lora.ranks.spectrum import DeltaSpectrum


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Ranks of one adapter, with their expected size and error.

    Attributes:
        ranks: rank of each decomposed delta; 0 is nothing, None is the dense delta.
        nbytes: bytes of the file.
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


class RankAllocator:
    """Choose the ranks of an adapter from the spectra of its deltas, under any rule.

    Args:
        spectra: spectra of all deltas that may get a rank.
        dtype: dtype of the stored tensors.
        prefix: prefix of the component.
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
        self._spectra = [self._spectrum(delta) for delta in spectra]
        self._exact = [self._exact_spectrum(delta) for delta in spectra]
        self.fixed_bytes = overhead + sum(stored_bytes(prefix, name, shape, dtype) for name, shape in dense.items())
        self._least_sq = others.error_sq + sum(_least(delta) for delta in spectra)

    def fixed(self, ranks: FixedRank) -> Choice:
        """Return the choice of one rank for linear weights and one for convs."""
        chosen = [min(ranks.rank_of(delta.shape), len(delta.squares)) for delta in self._deltas]
        return self._choice(chosen)

    def within(self, nbytes: Sequence[int]) -> list[Choice]:
        """Return the choices with the least error for files of these sizes.

        Raises:
            InputError: a size is too small for what every file contains.
        """
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
        return [
            self._choice(found.ranks) for found in curve(self._spectra, [size - self.fixed_bytes for size in nbytes])
        ]

    def error(self, target_sq: float) -> Choice:
        """Return the smallest choice with a squared error of at most `target_sq`.

        Raises:
            InputError: no choice of ranks reaches it.
        """
        found = cheapest_with(self._spectra, target_sq - self._least_sq)
        if found.error_sq + self._least_sq > target_sq:
            raise InputError(
                f"no ranks reach an error this small: the lowest squared error is "
                f"{found.error_sq + self._least_sq:.3g}, {target_sq:.3g} was requested. Allow a larger error, or "
                "store more tensors or more precision (",
                Option("save_precision"),
                ").",
            )
        return self._choice(found.ranks)

    def module_error(self, relative_error: float) -> Choice:
        """Return the smallest rank with this relative error for each delta, in the norm of the spectra."""
        return self._choice([error_rank(spectrum, relative_error) for spectrum in self._exact])

    def energy(self, share: float) -> Choice:
        """Return the smallest rank that keeps this share of the energy of each delta, in the norm of the spectra."""
        return self._choice([energy_rank(spectrum, share) for spectrum in self._exact])

    @property
    def energy_sq(self) -> float:
        """Return the squared error of a file without any delta."""
        return sum(float(delta.squares.sum()) + delta.rest for delta in self._deltas) + self._others.delta_sq

    def _choice(self, ranks: Sequence[int | None]) -> Choice:
        """Return the choice for these ranks, with its size and error."""
        nbytes, error_sq = self.fixed_bytes, self._others.error_sq
        for delta, spectrum, rank in zip(self._deltas, self._exact, ranks, strict=True):
            nbytes += spectrum.size(rank)
            is_given = delta.is_kept and rank is not None and rank >= len(delta.squares)
            error_sq += 0.0 if is_given else _error_sq(delta, rank)
        names = [delta.name for delta in self._deltas]
        return Choice(ranks=dict(zip(names, ranks, strict=True)), nbytes=nbytes, error_sq=error_sq)

    def _exact_spectrum(self, delta: DeltaSpectrum) -> Spectrum:
        """Return the spectrum without rounding to the stored dtype, which matters only between deltas."""
        return self._of(delta, np.minimum.accumulate(delta.squares.numpy()), delta.rest)

    def _spectrum(self, delta: DeltaSpectrum) -> Spectrum:
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


def megabytes(nbytes: int) -> str:
    """Format bytes as `12.3 MB`, or in kB below 1 MB."""
    return f"{nbytes / 1e6:,.1f} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:,.1f} kB"
