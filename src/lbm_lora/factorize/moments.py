"""Second moments M = sum of weight * x x^T of the vectors on one side of a layer, in bounded memory.

Up to a fixed width a moment is dense. Above it, it is low rank plus diagonal: a Nystroem approximation from one
sketch Y = M Omega to which rows are added as they arrive (Tropp, Yurtsever, Udell, Cevher, "Fixed-Rank Approximation
of a Positive-Semidefinite Matrix from Streaming Data", 2017, arXiv 1706.05736), plus the difference between the
diagonal of M and that of the approximation, so that the diagonal is exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from lbm_lora.choices import DENSE_UP_TO, SKETCH_RANK
from lbm_lora.errors import InputError
from lbm_lora.factorize.roots import Root, cholesky, low_rank_root, triangular_root, vectors_of

_ROWS = 4096  # rows converted to fp32 at once
_SHIFT = 4 * torch.finfo(torch.float32).eps  # of ||Y||_F: what fp32 sums may have lost of Y


@dataclass(frozen=True)
class Moment:
    """A positive semidefinite M (n, n) in fp32: either `dense`, or `diagonal` with or without `factor`.

    Attributes:
        dense: (n, n), M itself.
        diagonal: (n,), non-negative; M = diag(diagonal), plus factor @ factor^T if there is one.
        factor: (n, k).
        repeat: how many consecutive columns of a matrix each of the n stands for. For a conv's inputs M covers the
            channels and applies to each of the kh*kw positions of the kernel, since columns are ordered (in, kh, kw);
            the correlation between two positions counts as zero.
    """

    dense: Float[Tensor, "n n"] | None = None
    diagonal: Float[Tensor, " n"] | None = None
    factor: Float[Tensor, "n k"] | None = None
    repeat: int = 1

    @property
    def size(self) -> int:
        return self.variances().shape[0]

    @property
    def trace(self) -> float:
        return self.repeat * float(self.variances().sum())

    def variances(self) -> Float[Tensor, " n"]:
        """The diagonal of M, in fp64."""
        if self.dense is not None:
            return self.dense.diagonal().double()
        diagonal, factor = self._low_rank()
        return diagonal + factor.square().sum(dim=1)

    def quadratic(self, matrix: Float[Tensor, "rows columns"]) -> float:
        """Return tr(matrix M matrix^T), in fp64."""
        return sum(self._quadratic(block.double()) for block in vectors_of(matrix, self.repeat).split(_ROWS))

    def root(self, ridge: float) -> Root:
        """Return a root of M + ridge * mean(diag M) * I.

        Args:
            ridge: above 0. It gives errors a cost in directions that no sample covered.
        """
        added = ridge * float(_finite(self.variances()).mean())
        if self.dense is not None and added > 0:
            shifted = self.dense.double()
            shifted.diagonal().add_(added)
            return triangular_root(shifted, added, self.repeat)
        diagonal, factor = self._low_rank()
        return low_rank_root(diagonal + added, factor, self.repeat)

    def _low_rank(self) -> tuple[Float[Tensor, " n"], Float[Tensor, "n k"]]:
        """Return diagonal and factor in fp64, for an M of that form or zero."""
        diagonal = self.variances() if self.diagonal is None else self.diagonal.double()
        return diagonal, diagonal[:, None][:, :0] if self.factor is None else self.factor.double()

    def _quadratic(self, vectors: Float[Tensor, "m n"]) -> float:
        if self.dense is not None:
            return float(((vectors @ self.dense.double()) * vectors).sum())
        diagonal, factor = self._low_rank()
        return float(vectors.square().sum(dim=0) @ diagonal + (vectors @ factor).square().sum())


class MomentAccumulator:
    """Sum of weight * x x^T over rows x added in any number of parts; O(n^2) up to `dense_up_to`, O(n k) above.

    Args:
        size: n, the length of a row.
        dense_up_to: the largest n with a dense moment.
        sketch_rank: k, the columns of the sketch above it; 0 keeps only the diagonal.
    """

    def __init__(
        self,
        size: int,
        *,
        dense_up_to: int = DENSE_UP_TO,
        sketch_rank: int = SKETCH_RANK,
        repeat: int = 1,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        whole = size <= max(dense_up_to, sketch_rank)
        self._dense = torch.zeros(size, size, device=device) if whole else None
        self._diagonal = torch.zeros(0 if whole else size, device=device)
        self._sketch = torch.zeros(0 if whole else size, sketch_rank, device=device)
        self._repeat, self._seed = repeat, seed

    @property
    def size(self) -> int:
        return len(self._diagonal if self._dense is None else self._dense)

    @property
    def is_zero(self) -> bool:
        """Whether no row other than zeros was added."""
        return not bool((self._diagonal if self._dense is None else self._dense.diagonal()).any())

    def add(self, rows: Float[Tensor, "tokens n"], weight: float = 1.0) -> None:
        """Add weight * rows^T @ rows; rows of any floating-point dtype and device, weight non-negative."""
        sums = self._diagonal if self._dense is None else self._dense
        for block in rows.detach().split(_ROWS):
            wide = block.to(sums.device, torch.float32)
            if self._dense is not None:
                self._dense.addmm_(wide.mT, wide, alpha=weight)
                continue
            self._diagonal.add_(wide.square().sum(dim=0), alpha=weight)
            self._sketch.addmm_(wide.mT, wide @ self._omega(), alpha=weight)

    def result(self, count: float = 1.0) -> Moment:
        """Return the sum divided by `count`."""
        if self._dense is not None:
            mean = _finite(self._dense) / count
            return Moment(dense=(mean + mean.mT) / 2, repeat=self._repeat)
        diagonal = _finite(self._diagonal) / count
        if self._sketch.shape[1] == 0:
            return Moment(diagonal=diagonal, repeat=self._repeat)
        factor = _nystroem(_finite(self._sketch).double() / count, self._omega().double()).float()
        rest = (diagonal - factor.square().sum(dim=1)).clamp(min=0)
        return Moment(diagonal=rest, factor=factor, repeat=self._repeat)

    def state(self) -> dict[str, Tensor]:
        """Return all that `from_state` needs to resume; the tensors are the sums themselves, not copies."""
        settings = {"repeat": torch.tensor(self._repeat), "seed": torch.tensor(self._seed)}
        if self._dense is not None:
            return settings | {"dense": self._dense}
        return settings | {"diagonal": self._diagonal, "sketch": self._sketch}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "MomentAccumulator":
        """Restore an accumulator from its `state`; it continues in the given tensors."""
        found = cls(0, repeat=int(state["repeat"]), seed=int(state["seed"]))
        found._dense = state.get("dense")
        if found._dense is None:
            found._diagonal, found._sketch = state["diagonal"], state["sketch"]
        return found

    def _omega(self) -> Float[Tensor, "n k"]:
        return _test_matrix(*self._sketch.shape, self._seed, self._sketch.device)


@lru_cache(maxsize=32)  # a model has few widths
def _test_matrix(size: int, rank: int, seed: int, device: torch.device) -> Float[Tensor, "size rank"]:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, rank, generator=generator)).Q.to(device)


def _nystroem(sketch: Float[Tensor, "n k"], omega: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Return F with F F^T = Y (Omega^T Y)^-1 Y^T, Y shifted by slightly more than its rounding (paper, algorithm 3)."""
    shift = _SHIFT * float(sketch.norm())
    if shift == 0:
        return sketch
    shifted = sketch + shift * omega
    core = omega.mT @ shifted
    lower = cholesky((core + core.mT) / 2, floor=shift)
    return torch.linalg.solve_triangular(lower, shifted.mT, upper=False).mT


def _finite(sums: Tensor) -> Tensor:
    if not torch.isfinite(sums).all():
        raise InputError("a second moment has values that are not finite.")
    return sums
