"""Deltas of LyCORIS' other parametrisations as factors, exactly: Tucker, LoHa, LoKr.

Formulas: lycoris/modules (locon.py, loha.py, lokr.py). A product of entries (LoHa) or of
Kronecker's kind (LoKr) of two low-rank matrices is itself of low rank, the product of both: its factors follow from
those of the file. If they would take more bytes than the matrix, they are multiplied out.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lbm_lora.factorize import Factors, exact_factors


def with_mid(mid: Tensor, down: Tensor) -> Tensor:
    """Return mid @ down, kernels included: delta[o, i] = sum up[o, m] mid[m, n] down[n, i].

    Args:
        mid: (rank, inner[, kh, kw]).
        down: (inner, in[, 1, 1]).

    Returns:
        fp32 (rank, in[, kh, kw]).
    """
    return torch.einsum("mn...,ni->mi...", mid.float(), down.float().flatten(1))


def loha(parts: Mapping[str, Tensor]) -> Factors:
    """Return factors of (w1_a @ w1_b) * (w2_a @ w2_b), without alpha: the rank is the product of both ranks."""
    one = _tucker_or_product(parts, "hada_w1_a", "hada_w1_b", "hada_t1")
    two = _tucker_or_product(parts, "hada_w2_a", "hada_w2_b", "hada_t2")
    up = (one.up[:, :, None] * two.up[:, None, :]).flatten(1)
    down = (one.down[:, None, :] * two.down[None, :, :]).flatten(0, 1)
    return Factors(up, down)


def lokr(parts: Mapping[str, Tensor]) -> Factors:
    """Return factors of the Kronecker product of w1 and w2, without alpha."""
    one, two = (
        exact_factors(parts[f"lokr_{name}"].flatten(1))
        if f"lokr_{name}" in parts
        else _tucker_or_product(parts, f"lokr_{name}_a", f"lokr_{name}_b", f"lokr_t{name[1]}")
        for name in ("w1", "w2")
    )
    up, down = (torch.kron(a.contiguous(), b.contiguous()) for a, b in ((one.up, two.up), (one.down, two.down)))
    return Factors(up, down)


def _tucker_or_product(parts: Mapping[str, Tensor], left: str, right: str, core: str) -> Factors:
    """Return the factors of left @ right, or with a core (rank, rank, kh, kw) of left^T core right."""
    first, second = parts[left].float(), parts[right].float()
    if core not in parts:
        return Factors(first.flatten(1), second.flatten(1))
    return Factors(first.T.contiguous(), torch.einsum("ij...,jq->iq...", parts[core].float(), second).flatten(1))


def up_and_down(delta: Tensor) -> tuple[Tensor, Tensor]:
    """Return (up, down) of a dense delta of a weight in its dtype and exactly, with an identity as one of them."""
    factors = exact_factors(delta.flatten(1))
    up, down = factors.up.to(delta.dtype), factors.down.to(delta.dtype)
    kernel = delta.shape[2:]
    return up.reshape(*up.shape, *(1 for _ in kernel)), down.reshape(-1, *delta.shape[1:])


def is_smaller_dense(factors: Factors) -> bool:
    """Return whether the matrix takes fewer numbers than its factors."""
    rows, columns = factors.up.shape[0], factors.down.shape[1]
    return factors.rank * (rows + columns) > rows * columns
