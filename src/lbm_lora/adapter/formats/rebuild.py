"""Deltas of LyCORIS' other parametrisations as factors, exactly: Tucker, LoHa, LoKr.

Formulas: lycoris/modules (locon.py, loha.py, lokr.py). A product of entries (LoHa) or of
Kronecker's kind (LoKr) of two low-rank matrices is itself of low rank, the product of both: its factors follow from
those of the file. If they would take more bytes than the matrix, the matrix is computed in their place. A small file
can ask for a large delta, so the sizes are known before anything is computed.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lbm_lora.errors import InputError
from lbm_lora.factorize import Factors, exact_factors

MOST_VALUES = 2**28
"""Most values of a rebuilt delta or factor: 1 GB in fp32. The largest weight of SDXL's UNet has 29 million."""


def with_mid(mid: Tensor, down: Tensor) -> Tensor:
    """Return mid @ down, kernels included: delta[o, i] = sum up[o, m] mid[m, n] down[n, i].

    Args:
        mid: (rank, inner[, kh, kw]).
        down: (inner, in[, 1, 1]).

    Returns:
        fp32 (rank, in[, kh, kw]).
    """
    _check_size(mid.numel() // mid.shape[1], down.shape[1])
    return torch.einsum("mn...,ni->mi...", mid.float(), down.float().flatten(1))


def loha(parts: Mapping[str, Tensor]) -> Factors | Tensor:
    """Return factors of (w1_a @ w1_b) * (w2_a @ w2_b), without alpha, or the matrix in fp32 if that is smaller.

    The rank is the product of both ranks.
    """
    one = _tucker_or_product(parts, "hada_w1_a", "hada_w1_b", "hada_t1")
    two = _tucker_or_product(parts, "hada_w2_a", "hada_w2_b", "hada_t2")
    rows, columns = _shape_of(one)
    if _shape_of(two) != (rows, columns):
        raise _misfit()
    if _is_smaller_dense(rows, columns, one.rank * two.rank):
        return one.product() * two.product()
    up = (one.up[:, :, None] * two.up[:, None, :]).flatten(1)
    down = (one.down[:, None, :] * two.down[None, :, :]).flatten(0, 1)
    return Factors(up, down)


def lokr(parts: Mapping[str, Tensor]) -> Factors | Tensor:
    """Return factors of the Kronecker product of w1 and w2, without alpha, or the matrix in fp32 if that is smaller."""
    one, two = (
        exact_factors(_matrix(parts, f"lokr_{name}"))
        if f"lokr_{name}" in parts
        else _tucker_or_product(parts, f"lokr_{name}_a", f"lokr_{name}_b", f"lokr_t{name[1]}")
        for name in ("w1", "w2")
    )
    rows, columns = (first * second for first, second in zip(_shape_of(one), _shape_of(two), strict=True))
    if _is_smaller_dense(rows, columns, one.rank * two.rank):
        return torch.kron(one.product(), two.product())
    up, down = (torch.kron(a.contiguous(), b.contiguous()) for a, b in ((one.up, two.up), (one.down, two.down)))
    return Factors(up, down)


def _tucker_or_product(parts: Mapping[str, Tensor], left: str, right: str, core: str) -> Factors:
    """Return the factors of left @ right, or with a core (rank, rank, kh, kw) of left^T core right."""
    first, second = _matrix(parts, left), _matrix(parts, right)
    if core not in parts:
        if first.shape[1] != second.shape[0]:
            raise _misfit()
        return Factors(first.float(), second.float())
    inner = parts[core]
    if inner.dim() < 2 or inner.shape[:2] != (first.shape[0], second.shape[0]) or not inner.numel():
        raise _misfit()
    _check_size(inner.numel() // inner.shape[1], second.shape[1])
    joined = torch.einsum("ij...,jq->iq...", inner.float(), second.float()).flatten(1)
    return Factors(first.float().T.contiguous(), joined)


def _matrix(parts: Mapping[str, Tensor], role: str) -> Tensor:
    """Return a part as a matrix, kernels flattened."""
    if role not in parts or parts[role].dim() < 2 or not parts[role].numel():
        raise _misfit()
    return parts[role].flatten(1)


def _shape_of(factors: Factors) -> tuple[int, int]:
    return factors.up.shape[0], factors.down.shape[1]


def _misfit() -> InputError:
    return InputError("are incomplete or do not fit together.")


def _check_size(rows: int, columns: int) -> None:
    if rows * columns > MOST_VALUES:
        raise InputError(f"make a matrix of {rows:,} x {columns:,}. The limit is {MOST_VALUES:,} values.")


def _is_smaller_dense(rows: int, columns: int, rank: int) -> bool:
    """Return whether the matrix takes fewer numbers than its factors; refuse a matrix that is too large."""
    _check_size(rows, columns)
    return rank * (rows + columns) > rows * columns


def up_and_down(delta: Tensor) -> tuple[Tensor, Tensor]:
    """Return (up, down) of a dense delta of a weight in its dtype and exactly, with an identity as one of them."""
    factors = exact_factors(delta.flatten(1))
    up, down = factors.up.to(delta.dtype), factors.down.to(delta.dtype)
    kernel = delta.shape[2:]
    return up.reshape(*up.shape, *(1 for _ in kernel)), down.reshape(-1, *delta.shape[1:])
