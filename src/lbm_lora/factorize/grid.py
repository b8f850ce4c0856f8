"""Factors and vectors as whole numbers of 2 to 16 bits: every rank has its own width, and one unit.

    up @ down = (counts_up * unit) @ counts_down

The counts of a rank lie between -L and L, with L = 2^(width - 1) - 1. Vectors are rounded for the least error in a
weighted norm. If the norm has a triangular root, the error that rounding one element makes is compensated by the
elements not yet rounded: Babai's nearest plane (1986), known from GPTQ (Frantar et al., "GPTQ: Accurate Post-Training
Quantization for Generative Pre-trained Transformers", 2022, arXiv 2210.17323). The expected squared error then falls
from unit^2 / 12 * tr(M) to unit^2 / 12 * sum_j L_jj^2, L L^T = M.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int16
from torch import Tensor

from lbm_lora.errors import InputError
from lbm_lora.factorize.factors import Factors, root_of_unit, shortened, spread
from lbm_lora.factorize.roots import Root, TriangularRoot, joined, vectors_of

PACKED = torch.int16
"""Stands for factors on grids where the dtype of a file's factors is meant: the dtype of their counts."""

WIDTHS = (2, 3, 4, 5, 6, 8, 10, 12, 16)
"""Bits that a value may have; a rank of width 0 is left out."""

_CLIPS = {2: (0.4, 0.55, 0.7), 3: (0.55, 0.7, 0.85), 4: (0.65, 0.8, 1.0), 5: (0.75, 0.9, 1.0), 6: (0.85, 1.0)}
"""By width: shares of the largest value to try as the largest count. Few levels serve many values better if the largest
values are clipped; others are not clipped."""
_SAMPLE = 192  # elements that clipping and noise are judged by
_BLOCK = 64  # columns whose errors are passed on at once


@dataclass(frozen=True)
class Grid:
    """Precision of the ranks of a module, or of a vector (one rank).

    Attributes:
        widths: bits of each rank, from `WIDTHS`.
        unit: (rank,), positive, with 16 significant bits.
    """

    widths: tuple[int, ...]
    unit: Float32[Tensor, " rank"]


@dataclass(frozen=True)
class Counts:
    """Factors as a packed file stores them."""

    up: Int16[Tensor, "out rank"]
    down: Int16[Tensor, "rank columns"]
    grid: Grid

    def factors(self) -> Factors:
        return spread(self.up, self.down, self.grid.unit)


def counts_of(factors: Factors, grid: Grid) -> Counts:
    """Invert `Counts.factors`."""
    share = root_of_unit(grid.unit)
    up, down = (factors.up.float() / (grid.unit / share)).round(), (factors.down.float() / share[:, None]).round()
    most = torch.tensor([largest(width) for width in grid.widths], dtype=torch.float32)
    found = Counts(up.to(torch.int16), down.to(torch.int16), grid)
    again = found.factors()
    if (
        (up.abs() > most).any()
        or (down.abs() > most[:, None]).any()
        or not torch.equal(again.up, factors.up.float())
        or not torch.equal(again.down, factors.down.float())
    ):
        raise InputError("factors are not on the grid that they are to be stored with.")
    return found


def vector_of(counts: Int16[Tensor, " n"], grid: Grid) -> Float32[Tensor, " n"]:
    return counts.float() * grid.unit


def vector_counts(values: Float[Tensor, " n"], grid: Grid) -> Int16[Tensor, " n"]:
    """Invert `vector_of`."""
    counts = (values.float() / grid.unit).round()
    if (counts.abs() > largest(grid.widths[0])).any() or not torch.equal(counts * grid.unit, values.float()):
        raise InputError("values are not on the grid that they are to be stored with.")
    return counts.to(torch.int16)


def largest(width: int) -> int:
    return 2 ** (width - 1) - 1


def nearest(
    rows: Float[Tensor, "rank columns"],
    widths: Sequence[int],
    *,
    variances: Float[Tensor, " columns"] | None = None,
    root: Root | None = None,
) -> tuple[Int16[Tensor, "rank columns"], Float32[Tensor, " rank"]]:
    """Round each row to its width, for the least error in a weighted norm.

    Args:
        variances: the norm's diagonal, by which units are chosen.
        root: root of the norm; a triangular one passes errors on.

    Returns:
        The counts, and the unit of each row; 1 for a row of zeros.
    """
    values = rows.float().contiguous()
    unit = _units(_sampled(values, variances), widths)
    most = torch.tensor([largest(width) for width in widths], dtype=torch.float32)
    if isinstance(root, TriangularRoot):
        repeat = root.repeat
        found = _planes(
            vectors_of(values, repeat).numpy(),
            root.lower.cpu().numpy(),
            unit.repeat_interleave(repeat).numpy(),
            most.repeat_interleave(repeat).numpy(),
        )
        counts = joined(torch.from_numpy(found), values.shape, repeat)
    else:
        counts = (values / unit[:, None]).round_().clamp_(-most[:, None], most[:, None])
    return counts.to(torch.int16), unit


def relative_noise(
    rows: Float[Tensor, "rank columns"], variances: Float[Tensor, " columns"] | None = None
) -> Float64[np.ndarray, "widths rank"]:
    """Return the squared error of rounding each row to each of `WIDTHS`, each element on its own, in the norm of the
    diagonal, relative to the row's squared length in it."""
    sampled = _sampled(rows.float(), variances)
    sizes, is_zero = sampled.sizes(), sampled.highest == 0
    found = [_units_of_width(sampled.values, sampled.highest, sampled.weights, width)[1] / sizes for width in WIDTHS]
    return np.stack([one.masked_fill_(is_zero, 0.0).double().numpy() for one in found])


@dataclass(frozen=True)
class _Sampled:
    """Sample of rows from which their units are chosen."""

    highest: Float32[Tensor, " rank"]
    values: Float32[Tensor, "rank sample"]
    weights: Float32[Tensor, " sample"]

    def sizes(self) -> Float32[Tensor, " rank"]:
        """Return the squared length of each row, above 0."""
        return (self.values.square() @ self.weights).clamp_(min=torch.finfo(torch.float32).tiny)


def _sampled(values: Float32[Tensor, "rank columns"], variances: Tensor | None) -> _Sampled:
    highest = torch.maximum(-values.amin(dim=1), values.amax(dim=1))  # faster than aminmax; a NaN is both
    if not torch.isfinite(highest).all():
        raise InputError("factors have values that are not finite and cannot be stored.")
    step = max(1, values.shape[1] // _SAMPLE)
    sample = values[:, ::step]
    return _Sampled(highest, sample, torch.ones(sample.shape[1]) if variances is None else variances[::step].float())


def _units(sampled: _Sampled, widths: Sequence[int]) -> Float32[Tensor, " rank"]:
    unit = torch.ones_like(sampled.highest)
    for width in set(widths):
        rows = torch.tensor([index for index, one in enumerate(widths) if one == width])
        unit[rows], _ = _units_of_width(sampled.values[rows], sampled.highest[rows], sampled.weights, width)
    return torch.where(sampled.highest > 0, unit, torch.ones_like(unit))


def _units_of_width(
    sample: Float32[Tensor, "rank columns"],
    highest: Float32[Tensor, " rank"],
    weights: Float32[Tensor, " columns"],
    width: int,
) -> tuple[Float32[Tensor, " rank"], Float32[Tensor, " rank"]]:
    most, least = largest(width), torch.finfo(torch.float32).tiny
    if width not in _CLIPS:
        unit = shortened((highest / most).clamp_(min=least))
        return unit, unit.square() / 12 * weights.sum()
    best, unit = torch.full_like(highest, torch.inf), torch.ones_like(highest)
    for clip in _CLIPS[width]:
        tried = shortened((highest * clip / most).clamp_(min=least))
        counts = (sample / tried[:, None]).round_().clamp_(-most, most)
        error = (sample - counts * tried[:, None]).square_() @ weights
        better = error < best
        best, unit = torch.where(better, error, best), torch.where(better, tried, unit)
    return unit, best


def _planes(
    rows: Float32[np.ndarray, "m n"],
    lower: Float32[np.ndarray, "n n"],
    unit: Float32[np.ndarray, " m"],
    most: Float32[np.ndarray, " m"],
) -> Float32[np.ndarray, "m n"]:
    """Round the rows so that ||(rows - counts * unit) L||^2 is small, from the last column to the first.

    The error in column i changes column j < i of the product like an error of L_ij / L_jj there.
    """
    passed = lower / lower.diagonal()[None, :]
    wanted, counts = rows.copy(), np.empty_like(rows)
    inverse = 1 / unit
    for end in range(rows.shape[1], 0, -_BLOCK):
        start = max(0, end - _BLOCK)
        errors = np.empty((len(rows), end - start), np.float32)
        for column in range(end - 1, start - 1, -1):
            count = np.rint(wanted[:, column] * inverse)
            np.clip(count, -most, most, out=count)
            counts[:, column] = count
            error = rows[:, column] - count * unit
            errors[:, column - start] = error
            if column > start:
                wanted[:, start:column] += error[:, None] * passed[column, start:column]
        if start:
            wanted[:, :start] += errors @ passed[start:end, :start]
    return counts
