"""Deltas of other parametrisations: Tucker, LoHa and LoKr as factors, exactly, and DoRA as a dense delta.

Formulas: lycoris/modules (locon.py, loha.py, lokr.py). A product of entries (LoHa) or of Kronecker's kind (LoKr) of two
low-rank matrices is itself of low rank, the product of both: its factors follow from those of the file. If they would
take more bytes than the matrix, the matrix is computed in their place. A small file can ask for a large delta, so the
sizes are known before anything is computed.

DoRA (Liu et al., arXiv 2402.09353, equation 5): tuned = magnitude * (base + delta) / norm(base + delta). The norm is
taken over every axis on which the magnitude has size 1. PEFT has one magnitude per output; LyCORIS also knows one per
input. The delta depends on the base and is not linear in the LoRA's scale: no LoRA holds it as factors.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lbm_lora.adapter.module import LoraModule
from lbm_lora.errors import InputError, plural
from lbm_lora.factorize import Factors, exact_factors
from lbm_lora.naming import ModuleName

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


def module_of_matrix(name: ModuleName, delta: Tensor) -> LoraModule:
    """Return a dense delta of a weight as factors in its dtype and exactly, with an identity as one of them."""
    factors = exact_factors(delta.flatten(1))
    up, down = factors.up.to(delta.dtype), factors.down.to(delta.dtype)
    up = up.reshape(*up.shape, *(1 for _ in delta.shape[2:]))
    return LoraModule(name, down.reshape(-1, *delta.shape[1:]), up, float(factors.rank))


def dora_delta(base: Tensor, delta: Tensor, magnitude: Tensor, *, epsilon: float = 0.0) -> Tensor:
    """Return the dense delta in fp32, in the weight's shape.

    Args:
        base, delta: the base's weight, and scaling * up @ down, in one shape.
        magnitude: as many axes as the weight, each of its size or 1: (out, 1[, 1, 1]) or (1, in[, 1, 1]).
    """
    weight = base.float()
    direction = weight + delta.float()
    axes = [axis for axis, size in enumerate(magnitude.shape) if size == 1]
    norm = torch.linalg.vector_norm(direction, dim=axes, keepdim=True) + epsilon
    scale = torch.where(norm > 0, magnitude.float() / norm, 0.0)  # a direction of zeros has no length to change
    return scale * direction - weight


def dora_note(modules: int, deltas: Iterable[Tensor]) -> str:
    """Return what the user should know of DoRA modules and their dense deltas."""
    nbytes = sum(delta.nbytes for delta in deltas)
    size = f"{nbytes / 1e6:,.1f} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:,.1f} kB"
    return f"{plural(modules, 'module')} of DoRA: dense deltas ({size} in all), exact for this base and at scale 1."
