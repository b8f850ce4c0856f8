"""Truncated SVD against the exact one in fp64; first rounds in bf16 where they pay."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lbm_lora.factorize import TruncatedSVD, krylov, truncated_svd
from lbm_lora.factorize.krylov import leading_subspace
from spectra import SPECTRA, WORST, bound_of, error_of, matrix_with

RANK = 24
SPARE_RANK = 48
LARGE = [(200, 260), (400, 196)]  # the randomized path: short side above 192, rank far below it


@pytest.fixture(params=[False, True], ids=["fp32", "bf16"])
def multiplies_bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run a test as on a processor that multiplies bf16 natively, and as on one that does not."""
    monkeypatch.setattr(krylov, "multiplies_bf16", lambda _: request.param)
    return request.param


def check(matrix: Tensor, found: TruncatedSVD, rank: int) -> None:
    """Shapes, orthonormal sides, falling values, and the error of an optimum."""
    rows, columns = matrix.shape
    assert (found.left.shape, found.values.shape, found.right.shape) == ((rows, rank), (rank,), (rank, columns))
    identity = torch.eye(rank)
    torch.testing.assert_close(found.left.mT @ found.left, identity, rtol=0, atol=2e-5)
    torch.testing.assert_close(found.right @ found.right.mT, identity, rtol=0, atol=2e-5)
    assert (found.values >= 0).all()
    assert (found.values.diff() <= 0).all()
    assert error_of(matrix, found.left * found.values, found.right) <= bound_of(matrix, rank)


@pytest.mark.parametrize("name", WORST)
@pytest.mark.parametrize("shape", [(32, 48), (96, 40), (16, 600)])
def test_small_matrices_are_decomposed_exactly(shape: tuple[int, int], name: str) -> None:
    matrix = matrix_with(*shape, SPECTRA[name])
    rank = min(RANK, *shape)
    found = truncated_svd(matrix, rank, seed=0)
    assert found.exact
    check(matrix, found, rank)
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)[:rank]
    np.testing.assert_allclose(found.values.numpy(), values, rtol=1e-5, atol=1e-6 * float(values[0]))


@pytest.mark.usefixtures("multiplies_bf16")
@pytest.mark.parametrize("name", WORST)
@pytest.mark.parametrize("shape", LARGE)
def test_the_randomized_method_is_optimal(shape: tuple[int, int], name: str) -> None:
    matrix = matrix_with(*shape, SPECTRA[name])
    check(matrix, truncated_svd(matrix, RANK, seed=1), RANK)


@pytest.mark.usefixtures("multiplies_bf16")
@pytest.mark.parametrize("name", WORST)
def test_with_spare_ranks_the_error_is_within_a_percent(name: str) -> None:
    matrix = matrix_with(*LARGE[0], SPECTRA[name])
    found = truncated_svd(matrix, SPARE_RANK, seed=1, has_spare=True)
    for rank in (SPARE_RANK, SPARE_RANK * 3 // 4):
        lower = found.first(rank)
        assert error_of(matrix, lower.left * lower.values, lower.right) <= 1.01 * bound_of(matrix, rank)


def test_spare_ranks_save_the_exact_method(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = matrix_with(200, 260, SPECTRA["power 1"])
    assert truncated_svd(matrix, SPARE_RANK, seed=0).exact
    assert not truncated_svd(matrix, SPARE_RANK, seed=0, has_spare=True).exact
    assert truncated_svd(matrix, 80, seed=0, has_spare=True).exact  # so many save nothing
    monkeypatch.setattr(krylov, "_WIDE_TOLERANCE", -1.0)  # nothing is good enough
    monkeypatch.setattr(krylov, "_FLOOR", 0.0)
    assert truncated_svd(matrix, SPARE_RANK, seed=0, has_spare=True).exact


@pytest.mark.parametrize("scale", [1e-20, 1e20])
@pytest.mark.parametrize("shape", [(48, 64), (200, 260)])
def test_the_scale_does_not_matter(shape: tuple[int, int], scale: float) -> None:
    matrix = matrix_with(*shape, SPECTRA["power 1"]) * scale
    check(matrix, truncated_svd(matrix, RANK, seed=1), RANK)


def test_which_method_takes_which_matrix() -> None:
    flat = SPECTRA["power 1"]
    assert truncated_svd(matrix_with(192, 300, flat), 8, seed=0).exact  # LAPACK is as fast
    assert not truncated_svd(matrix_with(193, 300, flat), 32, seed=0).exact
    assert truncated_svd(matrix_with(193, 300, flat), 33, seed=0).exact  # a high rank saves nothing


def test_the_exact_method_takes_over_where_the_randomized_one_does_not_converge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    matrix = matrix_with(200, 260, SPECTRA["power 0.2"])
    assert not truncated_svd(matrix, RANK, seed=0).exact
    monkeypatch.setattr(krylov, "_TOLERANCE", -1.0)  # nothing is good enough
    monkeypatch.setattr(krylov, "_FLOOR", 0.0)
    found = truncated_svd(matrix, RANK, seed=0)
    assert found.exact
    check(matrix, found, RANK)


def test_slow_spectra_take_more_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check is not an ornament: the first rounds alone are far from the optimum for a slowly falling spectrum."""
    matrix = matrix_with(640, 640, SPECTRA["power 0.2"])
    check(matrix, truncated_svd(matrix, 8, seed=0), 8)
    monkeypatch.setattr(krylov, "_FIRST_ROUNDS", 2)
    check(matrix, truncated_svd(matrix, 8, seed=0), 8)
    monkeypatch.setattr(krylov, "_TOLERANCE", 1.0)  # anything is good enough
    hasty = truncated_svd(matrix, 8, seed=0)
    assert error_of(matrix, hasty.left * hasty.values, hasty.right) > bound_of(matrix, 8)


@pytest.mark.parametrize("shape", [(64, 64), (200, 260)])
def test_the_same_seed_gives_the_same_bytes(shape: tuple[int, int]) -> None:
    matrix = matrix_with(*shape, SPECTRA["power 0.5"])
    first, second = (truncated_svd(matrix, RANK, seed=7) for _ in range(2))
    torch.manual_seed(123)  # the global stream plays no part
    third = truncated_svd(matrix, RANK, seed=7)
    for other in (second, third):
        assert torch.equal(first.left, other.left)
        assert torch.equal(first.values, other.values)
        assert torch.equal(first.right, other.right)


LOW_RANK = 16


class Counted(krylov._Products):
    """Products that are counted by dtype."""

    counts: dict[torch.dtype, int]

    def across(self, basis: Tensor) -> Tensor:
        self.counts[self._matrix.dtype] = self.counts.get(self._matrix.dtype, 0) + 1
        return super().across(basis)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> dict[torch.dtype, int]:
    """Rounds by dtype, on a processor that multiplies bf16."""
    monkeypatch.setattr(krylov, "multiplies_bf16", lambda _: True)
    monkeypatch.setattr(krylov, "_Products", Counted)
    Counted.counts = {}
    return Counted.counts


def projection_error(matrix: Tensor, rank: int = LOW_RANK) -> float:
    """||matrix - its projection on what was found||."""
    squared_norm = float(matrix.double().square().sum())
    found = leading_subspace(matrix, rank, seed=3, squared_norm=squared_norm)
    assert found is not None
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    torch.testing.assert_close(found.product, wide @ found.rows.mT, rtol=0, atol=1e-5 * math.sqrt(squared_norm))
    rows = found.rows.double()
    return float((wide.double() - (wide.double() @ rows.mT) @ rows).norm())


@pytest.mark.parametrize("shape", [(256, 320), (400, 256)])
def test_a_large_error_needs_no_fp32_rounds(shape: tuple[int, int], counts: dict[torch.dtype, int]) -> None:
    matrix = matrix_with(*shape, SPECTRA["power 0.5"])
    assert projection_error(matrix) <= bound_of(matrix, LOW_RANK)
    assert set(counts) == {torch.bfloat16}


@pytest.mark.parametrize("name", ["rank 8 and noise", "a faint tail", "power 2", "exponential"])
def test_a_small_error_is_found_in_fp32(name: str, counts: dict[torch.dtype, int]) -> None:
    """What bf16 rounds away would be most of such an error."""
    matrix = matrix_with(256, 320, SPECTRA[name])
    assert projection_error(matrix) <= bound_of(matrix, LOW_RANK)
    assert counts[torch.float32] >= 4


@pytest.mark.parametrize("name", ["rank 8", "rank 8 and noise", "a faint tail"])
@pytest.mark.usefixtures("multiplies_bf16")
def test_rounding_errors_are_no_reason_to_give_up(name: str) -> None:
    """They depend on the processor: other starts stand for other processors."""
    for shape in [(256, 320), (400, 256)]:
        matrix = matrix_with(*shape, SPECTRA[name])
        squared_norm = float(matrix.double().square().sum())
        tried = [leading_subspace(matrix, LOW_RANK, seed=seed, squared_norm=squared_norm) for seed in range(12)]
        assert None not in tried
