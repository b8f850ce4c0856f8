"""Second moments summed in parts, their sketches, and their roots, against fp64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lbm_lora.factorize import Moment, MomentAccumulator, Root
from lbm_lora.factorize.roots import cholesky, low_rank_root, triangular_root
from spectra import SPECTRA, matrix_with

Rand = Callable[..., Tensor]
SKETCHED: dict[str, Any] = {"dense_up_to": 0, "sketch_rank": 12}
FORMS: dict[str, dict[str, Any]] = {"dense": {}, "sketched": SKETCHED, "diagonal": {"dense_up_to": 0, "sketch_rank": 0}}


def whole(moment: Moment) -> Tensor:
    """M in fp64, over all columns that it stands for."""
    if moment.dense is not None:
        matrix = moment.dense.double()
    else:
        assert moment.diagonal is not None
        matrix = torch.diag(moment.diagonal.double())
        if moment.factor is not None:
            matrix += moment.factor.double() @ moment.factor.double().mT
    return torch.kron(matrix, torch.eye(moment.repeat, dtype=torch.float64))


def moment_of(form: str, size: int = 40, *, repeat: int = 1, spectrum: str = "power 1", seed: int = 0) -> Moment:
    rows = matrix_with(3 * size, size, SPECTRA[spectrum], seed)
    accumulator = MomentAccumulator(size, repeat=repeat, **FORMS[form])
    accumulator.add(rows)
    return accumulator.result()


def ridged(moment: Moment, ridge: float) -> Tensor:
    matrix = whole(moment)
    return matrix + ridge * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=torch.float64)


def as_matrix(root: Root, columns: int) -> Tensor:
    return root.times(torch.eye(columns)).double()


@pytest.mark.parametrize("form", FORMS)
def test_parts_add_up_to_the_weighted_mean(form: str, rand: Rand) -> None:
    first, second = rand(5000, 20), rand(30, 20) * 3  # more rows than are widened at once
    parts = MomentAccumulator(20, **FORMS[form])
    parts.add(first, weight=0.25)
    parts.add(second, weight=2)
    found = parts.result(count=4)
    assert not parts.is_zero
    exact = (0.25 * first.double().mT @ first.double() + 2 * second.double().mT @ second.double()) / 4
    torch.testing.assert_close(found.variances(), exact.diagonal(), rtol=1e-5, atol=0)
    if form == "dense":
        assert found.dense is not None
        torch.testing.assert_close(found.dense.double(), exact, rtol=1e-5, atol=1e-5 * float(exact.max()))
        assert torch.equal(found.dense, found.dense.mT)


@pytest.mark.parametrize("form", FORMS)
def test_a_saved_state_goes_on_to_the_same_bytes(form: str, rand: Rand) -> None:
    first, second = rand(7, 20), rand(9, 20)
    one = MomentAccumulator(20, repeat=9, seed=3, **FORMS[form])
    one.add(first, 0.5)
    other = MomentAccumulator.from_state({name: tensor.clone() for name, tensor in one.state().items()})
    one.add(second)
    other.add(second)
    found, expected = other.result(), one.result()
    assert found.repeat == 9
    for name in ("dense", "diagonal", "factor"):
        part, same = getattr(found, name), getattr(expected, name)
        assert (part is None) == (same is None)
        assert part is None or torch.equal(part, same)


@pytest.mark.parametrize(
    ("size", "dense_up_to", "sketch_rank", "dense"), [(8, 8, 4, True), (9, 8, 4, False), (9, 0, 9, True)]
)
def test_the_width_decides_what_is_kept(size: int, dense_up_to: int, sketch_rank: int, dense: bool) -> None:
    accumulator = MomentAccumulator(size, dense_up_to=dense_up_to, sketch_rank=sketch_rank)
    held = sum(tensor.numel() for name, tensor in accumulator.state().items() if name not in ("seed", "repeat"))
    assert held == (size * size if dense else size * (sketch_rank + 1))
    assert (accumulator.result().dense is not None) == dense


@pytest.mark.parametrize("name", ["exponential", "power 2", "power 1", "power 0.5", "rank 8", "flat"])
def test_a_sketch_is_as_near_as_the_theory_has_it(name: str) -> None:
    """Theorem 4.1 of arXiv 1706.05736: E ||M - F F^T||_1 <= min over r of (1 + r / (k - r - 1)) * sum of values > r."""
    rows, k = matrix_with(200, 64, SPECTRA[name]), SKETCHED["sketch_rank"]
    dense, sketched = MomentAccumulator(64), MomentAccumulator(64, **SKETCHED)
    for part in rows.split(17):
        dense.add(part)
        sketched.add(part)
    exact, moment = whole(dense.result()), sketched.result()
    found = whole(moment)
    assert moment.factor is not None
    factor = moment.factor.double()
    values = torch.linalg.eigvalsh(exact).flip(0).clamp(min=0)
    bound = min((1 + r / (k - r - 1)) * float(values[r:].sum()) for r in range(k - 1))
    assert torch.linalg.matrix_norm(exact - factor @ factor.mT, "nuc") <= 1.02 * bound + 1e-4 * float(values[0])
    # and the diagonal is kept
    torch.testing.assert_close(found.diagonal(), exact.diagonal(), rtol=1e-4, atol=1e-6 * float(exact.trace()))
    assert torch.linalg.eigvalsh(found).min() > -1e-7 * float(exact.trace())


@given(
    form=st.sampled_from(sorted(FORMS)),
    repeat=st.sampled_from([1, 9]),
    spectrum=st.sampled_from(["flat", "power 0.5", "power 1", "power 2", "exponential", "rank 8", "a faint tail"]),
    ridge=st.sampled_from([1e-4, 1e-3, 1e-2, 1.0]),
    seed=st.integers(0, 3),
)
def test_a_root_times_itself_is_the_moment(form: str, repeat: int, spectrum: str, ridge: float, seed: int) -> None:
    moment = moment_of(form, 24, repeat=repeat, spectrum=spectrum, seed=seed)
    root, expected = moment.root(ridge), ridged(moment, ridge)
    found = as_matrix(root, 24 * repeat)
    torch.testing.assert_close(found @ found.mT, expected, rtol=0, atol=2e-6 * float(expected.diagonal().max()))
    matrix = matrix_with(6, 24 * repeat, SPECTRA["flat"], seed)
    assert (root.solve(root.times(matrix)) - matrix).norm() < 1e-3 * matrix.norm()
    assert (root.times(root.solve(matrix)) - matrix).norm() < 1e-3 * matrix.norm()


@pytest.mark.parametrize("repeat", [1, 4])
@pytest.mark.parametrize("form", FORMS)
def test_quadratic_and_trace(form: str, repeat: int, rand: Rand) -> None:
    moment = moment_of(form, repeat=repeat)
    matrix, exact = rand(7, 40 * repeat), whole(moment)
    assert moment.size == 40
    assert moment.trace == pytest.approx(float(exact.trace()), rel=1e-10)
    assert moment.quadratic(matrix) == pytest.approx(float((matrix.double() @ exact @ matrix.double().mT).trace()))
    weighed = moment.root(1e-9).times(matrix).double().square().sum()
    assert moment.quadratic(matrix) == pytest.approx(float(weighed), rel=1e-4)


def test_a_conv_shares_the_moment_of_its_channels_between_positions(rand: Rand) -> None:
    """In (in, kh, kw) order: the mean over positions of ||W_position x||^2, summed."""
    weight, rows = rand(3, 5, 2, 2), rand(50, 5)
    accumulator = MomentAccumulator(5, repeat=4)
    accumulator.add(rows, weight=1 / 50)
    outputs = torch.einsum("oihw,ti->tohw", weight.double(), rows.double())
    assert accumulator.result().quadratic(weight.flatten(1)) == pytest.approx(float(outputs.square().sum() / 50))


SIZE, RANK = 7, 3


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
