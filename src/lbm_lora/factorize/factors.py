"""A delta's matrix as the two factors that a file stores.

Below full rank: down = sqrt(S) V^T of the truncated SVD, rounded to what is stored, and then the best `up` for it,
which is U sqrt(S) but for the rounding. The split keeps both factors at one scale. The fit of `up` takes back what
a randomized SVD left, and what rounding `down` cost within its own rows: some percent at low rank, half near full.

At full rank no decomposition is needed: the matrix itself is one factor, the identity on its short side the other.
It costs the same bytes as an SVD's factors, and nothing is lost but the rounding of one matrix; deltas of bf16
checkpoints often survive even that bit for bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lbm_lora.errors import InputError, Option
from lbm_lora.factorize.eight_bit import on_grid, quantize
from lbm_lora.factorize.svd import TruncatedSVD, truncated_svd

_KEPT = 0.01  # how far rounding may move the squared length of a row of V^T before the row counts as lost
_CUTOFF = 1e-4  # directions of lost rows below this share of the largest are left out


@dataclass(frozen=True)
class Factors:
    """matrix ~ up @ down, with the values that are stored.

    Attributes:
        up: (out, rank).
        down: (rank, columns).
    """

    up: Float[Tensor, "out rank"]
    down: Float[Tensor, "rank columns"]

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def product(self) -> Float[Tensor, "out columns"]:
        """up @ down in fp32."""
        dense = self.dense()
        return self.up.float() @ self.down.float() if dense is None else dense.clone()

    def dense(self) -> Float[Tensor, "out columns"] | None:
        """The matrix in fp32 where one factor is the identity, as at full rank: no product is needed then."""
        if _is_identity(self.up):
            return self.down.float()
        return self.up.float() if _is_identity(self.down) else None


def factorize(matrix: Float[Tensor, "out columns"], rank: int, dtype: torch.dtype, *, seed: int) -> Factors:
    """The best factors of a rank, rounded to `dtype`.

    Args:
        matrix: fp32, finite.
        rank: 1 or more; the matrix's own bound, min(out, columns), caps it.
        dtype: what the file stores: fp32, fp16, bf16, or int8.
        seed: of the randomized method.

    Raises:
        InputError: a value leaves the range of `dtype`.
    """
    return factorize_ranks(matrix, [rank], dtype, seed=seed)[0]


def factorize_ranks(
    matrix: Float[Tensor, "out columns"],
    ranks: Sequence[int],
    dtype: torch.dtype,
    *,
    seed: int,
    squared_norm: float | None = None,
) -> list[Factors]:
    """The best factors of several ranks out of one decomposition, in their order; see `factorize`.

    Args:
        squared_norm: of the matrix, where it is known already.
    """
    bound = min(matrix.shape)
    highest = max((rank for rank in ranks if rank < bound), default=0)
    svd = truncated_svd(matrix, highest, seed=seed, squared_norm=squared_norm) if highest else None
    return [
        _full_rank(matrix, dtype) if svd is None or rank >= bound else factors_of(svd.first(rank), dtype)
        for rank in ranks
    ]


def factors_of(svd: TruncatedSVD, dtype: torch.dtype) -> Factors:
    """The best factors of what a decomposition keeps, rounded to `dtype`.

    Raises:
        InputError: a value leaves the range of `dtype`.
    """
    root = svd.values.sqrt()
    down = rounded_down(root[:, None] * svd.right, dtype)
    return stored_factors(_refit(svd, down.float(), root), down, dtype)


def rounded_down(down: Float[Tensor, "rank columns"], dtype: torch.dtype) -> Float[Tensor, "rank columns"]:
    """`down` with the values that are stored, which `up` is then fitted to; fp32 for int8.

    Raises:
        InputError: a value leaves the range of `dtype`.
    """
    return on_grid(down) if dtype == torch.int8 else rounded(down, dtype)


def stored_factors(up: Float[Tensor, "out rank"], down: Float[Tensor, "rank columns"], dtype: torch.dtype) -> Factors:
    """Both factors with the values that are stored; fp32 for int8, see `eight_bit`.

    Raises:
        InputError: a value leaves the range of `dtype`.
    """
    if dtype == torch.int8:
        return Factors(*quantize(up, down).factors())
    return Factors(rounded(up, dtype), rounded(down, dtype))


def dense_dtype(dtype: torch.dtype) -> torch.dtype:
    """What dense deltas are stored in beside factors of `dtype`: they have no ranks that could share a unit."""
    return torch.float16 if dtype == torch.int8 else dtype


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in the dtype that is stored.

    Raises:
        InputError: a finite value leaves the range of `dtype`, as those above 65504 do in fp16.
    """
    stored = values.to(dtype, copy=True)
    if not torch.isfinite(stored).all():
        raise InputError(
            f"values up to {float(values.abs().max()):g} do not fit into {str(dtype).removeprefix('torch.')}. "
            "Store them in bf16: ",
            Option("save_precision"),
            " bf16.",
        )
    return stored


def _is_identity(factor: Tensor) -> bool:
    rows, columns = factor.shape
    return rows == columns and torch.equal(factor, torch.eye(rows, dtype=factor.dtype, device=factor.device))


def _full_rank(matrix: Float[Tensor, "out columns"], dtype: torch.dtype) -> Factors:
    rows, columns = matrix.shape
    identity = torch.eye(min(rows, columns), device=matrix.device)
    return stored_factors(*((identity, matrix) if rows <= columns else (matrix, identity)), dtype)


def _refit(
    svd: TruncatedSVD, down: Float[Tensor, "rank columns"], root: Float[Tensor, " rank"]
) -> Float[Tensor, "out rank"]:
    """The best `up` for a given `down`: argmin ||left diag(values) right - up @ down||.

    What the decomposition leaves out is orthogonal to `right`, so it would change `up` only by its share in the
    rounding of `down`. The rows of down / root are nearly orthonormal, so the normal equations are well conditioned.
    Only a row that is zero, or that fp16 has flushed (its numbers end at 6e-8), is not; the pseudo-inverse leaves such
    rows out.
    """
    scale = torch.where(root > 0, root, torch.ones_like(root))
    rows = down / scale[:, None]
    gram, products = rows @ rows.mT, (rows @ svd.right.mT) @ (svd.left * svd.values).mT
    if ((gram.diagonal() - 1).abs() > _KEPT).any():
        return (torch.linalg.pinv(gram, rtol=_CUTOFF, hermitian=True) @ products).mT / scale
    return (torch.linalg.inv(gram) @ products).mT / scale
