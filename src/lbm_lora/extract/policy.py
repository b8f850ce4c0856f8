"""How ranks are chosen from the spectra of all deltas."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64

from lbm_lora.adapter import module_bytes, rank_bytes, stored_bytes
from lbm_lora.errors import InputError
from lbm_lora.extract.plan import Plan
from lbm_lora.extract.survey import Found, Surveyed
from lbm_lora.factorize import FixedRank, Spectrum, curve, dense_dtype, energy_rank, error_rank
from lbm_lora.factorize import allocate_error as cheapest_with
from lbm_lora.naming import ParamName, module_of


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The ranks of one adapter, and what is expected of it.

    Attributes:
        ranks: of each decomposed delta; 0 is nothing, None is the dense delta.
        nbytes: of the file.
        error_sq: the squared error in the norm of the survey, rounding to the stored dtype included.
    """

    ranks: dict[ParamName, int | None]
    nbytes: int
    error_sq: float


class Chooser:
    """Chooses ranks under any policy from one survey.

    Args:
        plan: of the survey.
        surveyed: its result.
        dtype: of the stored tensors.
        overhead: bytes of the file beside its tensors' data and their header entries.
        is_weighted: whether the survey's norm is that of an output, in which the other tensors were not measured.
    """

    def __init__(self, plan: Plan, surveyed: Surveyed, dtype: torch.dtype, *, overhead: int, is_weighted: bool) -> None:
        self._found = surveyed.found
        self._prefix = plan.pairing.tuned.prefix
        self._dtype = dtype
        self._spectra = [self._spectrum(found) for found in surveyed.found]
        self._exact = [self._exact_spectrum(found) for found in surveyed.found]
        stored = dense_dtype(dtype)
        whole = sum(stored_bytes(self._prefix, name, shape, stored) for name, shape in plan.dense().items())
        self.fixed_bytes = overhead + whole
        self._rest_sq = 0.0 if is_weighted else surveyed.others.error_sq
        self._least_sq = self._rest_sq + sum(_least(found) for found in surveyed.found)
        self._others_sq = 0.0 if is_weighted else surveyed.others.delta_sq

    def fixed(self, ranks: FixedRank) -> Choice:
        """One rank for linear weights and one for convs."""
        chosen = [min(ranks.rank_of(found.item.shape), len(found.squares)) for found in self._found]
        return self._choice(chosen)

    def within(self, nbytes: Sequence[int]) -> list[Choice]:
        """The least error that files of these sizes have room for.

        Raises:
            InputError: a size has no room for what every file holds.
        """
        smallest = min(nbytes)
        if smallest <= self.fixed_bytes:
            raise InputError(
                f"--max_size {megabytes(smallest)}: biases, norms and the header alone take "
                f"{megabytes(self.fixed_bytes)}. Give more, or leave tensors out: --exclude, --no-dense."
            )
        return [
            self._choice(found.ranks) for found in curve(self._spectra, [size - self.fixed_bytes for size in nbytes])
        ]

    def error(self, target_sq: float) -> Choice:
        """The smallest file with a squared error of `target_sq` or less.

        Raises:
            InputError: no choice of ranks reaches it.
        """
        found = cheapest_with(self._spectra, target_sq - self._least_sq)
        if found.error_sq + self._least_sq > target_sq:
            raise InputError(
                f"no ranks reach an error this small: a squared error of {found.error_sq + self._least_sq:.3g} stays, "
                f"{target_sq:.3g} is asked for. Ask for less, or store more tensors, or more digits of each "
                "(--save_precision)."
            )
        return self._choice(found.ranks)

    def module_error(self, relative_error: float) -> Choice:
        """For each delta the smallest rank with this relative error, in the norm of the survey."""
        return self._choice([error_rank(spectrum, relative_error) for spectrum in self._exact])

    def energy(self, share: float) -> Choice:
        """For each delta the smallest rank that keeps this share of its energy, in the norm of the survey."""
        return self._choice([energy_rank(spectrum, share) for spectrum in self._exact])

    @property
    def energy_sq(self) -> float:
        """The squared error of a file without any delta."""
        return sum(float(found.squares.sum()) + found.rest for found in self._found) + self._others_sq

    def _choice(self, ranks: Sequence[int | None]) -> Choice:
        """What ranks cost, and the error they leave."""
        nbytes, error_sq = self.fixed_bytes, self._rest_sq
        for found, spectrum, rank in zip(self._found, self._exact, ranks, strict=True):
            nbytes += spectrum.size(rank)
            error_sq += _error_sq(found, rank)
        names = [found.item.name for found in self._found]
        return Choice(ranks=dict(zip(names, ranks, strict=True)), nbytes=nbytes, error_sq=error_sq)

    def _exact_spectrum(self, found: Found) -> Spectrum:
        """Without the rounding to the stored dtype, which one delta alone cannot weigh against anything."""
        return self._of(found, np.minimum.accumulate(found.squares.numpy()), found.rest)

    def _spectrum(self, found: Found) -> Spectrum:
        """Of the ranks that are worth their bytes. Its errors are those above what the dense delta leaves.

        Rounding a rank takes away some of its gain. Where gains rise then, the larger one stands for those before it:
        no choice leaves more than its spectrum says.
        """
        gains = (found.squares - found.rounding).clamp(min=0)[: found.worth].numpy()
        last = max(_error_sq(found, found.worth) - _least(found), 0.0)
        return self._of(found, np.maximum.accumulate(gains[::-1])[::-1], last)

    def _of(self, found: Found, squares: Float64[np.ndarray, " k"], rest: float) -> Spectrum:
        item = found.item
        whole = stored_bytes(self._prefix, item.name, item.shape, dense_dtype(self._dtype))
        return Spectrum(
            squares=squares,
            rest=rest,
            rank_bytes=rank_bytes(item.shape, self._dtype),
            fixed_bytes=module_bytes(self._prefix, module_of(item.name), item.shape, 0, self._dtype),
            dense_bytes=whole if found.whole < math.inf else None,
        )


def _error_sq(found: Found, rank: int | None) -> float:
    """The squared error that a rank, nothing (0), or the dense delta (None) leaves, rounding included."""
    if rank is None:
        return found.whole
    return found.rest + float(found.squares[rank:].sum()) + float(found.rounding[:rank].sum())


def _least(found: Found) -> float:
    """The squared error of the dense delta, or of the highest rank where that is no choice."""
    return found.whole if found.whole < math.inf else _error_sq(found, found.worth)


def megabytes(nbytes: int) -> str:
    """`12.3 MB`; kB below one."""
    return f"{nbytes / 1e6:,.1f} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:,.1f} kB"
