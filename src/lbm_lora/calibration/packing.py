"""Second moments as tensors of a file, in two bytes a value.

A dense moment M is stored as the Cholesky factor L of M plus a small multiple of the identity: fp16, each row divided
by its norm; the norms are fp32. Rounding L by e changes the cost |L^T v|^2 of a direction v that matters little by
about e^2, while rounding M would change it by e: in fp16 by 1e-8 or 1e-4 of the mean, against a ridge of 1e-3.

A sketch is stored as its diagonal in fp32 and its factor in the same way as L.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lbm_lora.checkpoint import TensorSpec
from lbm_lora.factorize import Moment
from lbm_lora.factorize.roots import cholesky

TRIANGLE, DIAGONAL = "triangle", "diagonal"
FACTOR = "factor"
LOWER, NORMS = "lower", "norms"

_SHIFTS = (1e-6, 1e-5, 1e-4)  # of the mean variance: sums in fp32 have eigenvalues slightly below 0


def packed_specs(moment: Moment) -> dict[str, TensorSpec]:
    """Return the specs of what `pack_moment` returns, without computing it."""
    size = moment.size
    if moment.dense is not None:
        triangle = TensorSpec(torch.float16, (size * (size + 1) // 2,))
        return {LOWER: triangle, NORMS: TensorSpec(torch.float32, (size,))}
    if moment.factor is not None:
        factor = TensorSpec(torch.float16, tuple(moment.factor.shape))
        numbers = TensorSpec(torch.float32, (size,))
        return {DIAGONAL: numbers, FACTOR: factor, NORMS: numbers}
    return {DIAGONAL: TensorSpec(torch.float32, (size,))}


def pack_moment(moment: Moment) -> dict[str, Tensor]:
    """Return the tensors of a moment by the last part of their key."""
    if moment.dense is not None:
        lower, norms = _divided(_lower(moment.dense.double()))
        return {LOWER: triangle_of(lower), NORMS: norms}
    assert moment.diagonal is not None
    if moment.factor is None:
        return {DIAGONAL: moment.diagonal}
    factor, norms = _divided(moment.factor.double())
    return {DIAGONAL: moment.diagonal, FACTOR: factor, NORMS: norms}


def unpack_moment(keys: Mapping[str, TensorSpec], read: Callable[[str], Tensor], size: int) -> Moment:
    """Invert `pack_moment`, except for rounding; also read the moments of format 1, in fp32.

    Args:
        keys: the specs of the moment's tensors, by the last part of their keys.
    """

    def checked(key: str, *shape: int, has_columns: bool = False) -> Tensor:
        found = keys[key].shape
        if len(found) != len(shape) + has_columns or found[: len(shape)] != shape or 0 in found:
            raise ValueError(f"{key} has the shape {found}, which does not fit a moment of {size}")
        values = read(key)
        if key in (NORMS, DIAGONAL) and (values < 0).any():
            raise ValueError(f"{key} has values below 0")
        return values

    values = size * (size + 1) // 2
    if TRIANGLE in keys:
        above = torch.zeros(size, size)  # of format 1: the values on and above the diagonal, row by row
        above[_below(size, above.device).mT] = checked(TRIANGLE, values)
        return Moment(dense=above + above.triu(1).mT)
    if LOWER in keys:
        lower = _multiplied(square_of(checked(LOWER, values), size), checked(NORMS, size))
        moment = Moment(dense=lower @ lower.mT)
    else:
        factor = checked(FACTOR, size, has_columns=True) if FACTOR in keys else None
        if factor is not None and NORMS in keys:
            factor = _multiplied(factor, checked(NORMS, size))
        moment = Moment(diagonal=checked(DIAGONAL, size), factor=factor)
    if not torch.isfinite(moment.variances()).all():
        raise ValueError("its values leave the range of fp32 once they are multiplied")
    return moment


def triangle_of(matrix: Float[Tensor, "n n"]) -> Float[Tensor, " values"]:
    """Return the n (n + 1) / 2 values on and below the diagonal, row by row."""
    return matrix[_below(len(matrix), matrix.device)]


def square_of(triangle: Float[Tensor, " values"], size: int) -> Float[Tensor, "n n"]:
    """Invert `triangle_of`, with zeros above the diagonal."""
    matrix = triangle.new_zeros(size, size)
    matrix[_below(size, triangle.device)] = triangle
    return matrix


def _lower(matrix: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Return the Cholesky factor of a positive semidefinite matrix plus as little as makes it definite."""
    mean = float(matrix.diagonal().mean())
    if not mean > 0:
        return torch.zeros_like(matrix)
    for shift in _SHIFTS:
        shifted = matrix + shift * mean * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        lower, failed = torch.linalg.cholesky_ex(shifted)
        if not failed:
            return lower
    return cholesky(matrix, floor=_SHIFTS[-1] * mean)


def _divided(rows: Float[Tensor, "n k"]) -> tuple[Float[Tensor, "n k"], Float[Tensor, " n"]]:
    """Return rows of norm 1 in fp16, and their norms in fp32. A row of zeros stays."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(norms > 0, rows / norms, 0.0).half(), norms[:, 0].float()


def _multiplied(rows: Float[Tensor, "n k"], norms: Float[Tensor, " n"]) -> Float[Tensor, "n k"]:
    """Return rows of these norms: rounding to fp16 has not changed them."""
    found = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float32)
    return rows.float() * torch.where(found > 0, norms[:, None] / found, 0.0)


def _below(size: int, device: torch.device) -> Bool[Tensor, "n n"]:
    return torch.ones(size, size, dtype=torch.bool, device=device).tril()
