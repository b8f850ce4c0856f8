"""Roots of second moments: L L^T is the moment, solving undoes multiplying, and a kernel's positions are one vector."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lbm_lora.factorize.roots import Root, cholesky, low_rank_root, on_vectors, triangular_root, vectors_of

SIZE, RANK = 7, 3
Rand = Callable[..., Tensor]


def moment_parts(seed: int) -> tuple[Tensor, Tensor]:
    """The diagonal and the factor of a moment, fp64."""
    draw = torch.Generator().manual_seed(seed)
    diagonal = 0.5 + torch.rand(SIZE, generator=draw, dtype=torch.float64)
    return diagonal, torch.randn(SIZE, RANK, generator=draw, dtype=torch.float64)


def root_of(kind: str, seed: int, repeat: int = 1) -> tuple[Root, Tensor]:
    """A root, and its M as a matrix."""
    diagonal, factor = moment_parts(seed)
    moment = torch.diag(diagonal) + factor @ factor.mT
    root = triangular_root(moment, 1e-6, repeat) if kind == "triangular" else low_rank_root(diagonal, factor, repeat)
    return root, moment


KINDS = pytest.mark.parametrize("kind", ["triangular", "low rank"])


@KINDS
def test_one_moment_holds_for_every_position_of_a_kernel(kind: str, rand: Rand) -> None:
    plain, repeated = root_of(kind, 0)[0], root_of(kind, 0, repeat=4)[0]
    matrix = rand(5, SIZE * 4)
    whole = torch.kron(plain.times(torch.eye(SIZE)), torch.eye(4))  # columns are ordered (n, repeat)
    torch.testing.assert_close(repeated.times(matrix), matrix @ whole)


def test_where_the_moment_is_zero_a_solution_is_zero(rand: Rand) -> None:
    diagonal, factor = moment_parts(0)
    diagonal[2], factor[2] = 0, 0
    root, matrix = low_rank_root(diagonal, factor), rand(5, SIZE)
    for made in (root.times(matrix), root.solve(matrix)):
        assert torch.isfinite(made).all()
        assert (made[:, 2] == 0).all()
    without = torch.arange(SIZE) != 2
    torch.testing.assert_close(root.solve(root.times(matrix))[:, without], matrix[:, without], rtol=1e-4, atol=1e-4)


def test_eigenvalues_that_rounding_made_negative_are_raised_to_the_floor() -> None:
    vectors = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    values = torch.tensor([3.0, 1.0, 0.5, -1e-3], dtype=torch.float64)
    lower = cholesky((vectors * values) @ vectors.mT, floor=1e-2)
    assert (lower.triu(1) == 0).all()
    raised = torch.linalg.eigvalsh(lower @ lower.mT)
    torch.testing.assert_close(raised, torch.tensor([1e-2, 0.5, 1.0, 3.0], dtype=torch.float64))


@given(rows=st.integers(1, 4), size=st.integers(1, 4), repeat=st.integers(1, 4))
def test_vectors_are_those_of_each_row_and_position(rows: int, size: int, repeat: int) -> None:
    matrix = torch.arange(rows * size * repeat, dtype=torch.float32).reshape(rows, size * repeat)
    vectors = vectors_of(matrix, repeat)
    wanted = [matrix[row, position::repeat] for row in range(rows) for position in range(repeat)]
    assert torch.equal(vectors, torch.stack(wanted))
    assert torch.equal(on_vectors(lambda found: found + 0, matrix, repeat), matrix)
