"""Truncated SVD against the exact one of numpy in fp64."""

# pyright: reportPrivateUsage=false

import numpy as np
import pytest
import torch
from torch import Tensor

from lbm_lora.factorize import TruncatedSVD, exact_svd, krylov, truncated_svd
from spectra import SPECTRA, Spectrum, bound_of, error_of, matrix_with

RANK = 24
SPARE_RANK = 48
SMALL = [(32, 48), (96, 40), (64, 64)]
LARGE = [(200, 260), (400, 196), (256, 256)]  # the randomized path: short side above 192, rank far below it


@pytest.fixture(params=[False, True], ids=["fp32", "bf16"], autouse=True)
def multiplies_bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Every test runs as on a processor that multiplies bf16 natively, and as on one that does not."""
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


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
@pytest.mark.parametrize("shape", SMALL)
def test_small_matrices_are_decomposed_exactly(shape: tuple[int, int], spectrum: Spectrum) -> None:
    matrix = matrix_with(*shape, spectrum)
    found = truncated_svd(matrix, RANK, seed=0)
    assert found.exact
    check(matrix, found, RANK)
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)[:RANK]
    np.testing.assert_allclose(found.values.numpy(), values, rtol=1e-5, atol=1e-6 * float(values[0]))


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
@pytest.mark.parametrize("shape", LARGE)
def test_the_randomized_method_is_optimal(shape: tuple[int, int], spectrum: Spectrum) -> None:
    matrix = matrix_with(*shape, spectrum)
    check(matrix, truncated_svd(matrix, RANK, seed=1), RANK)


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
@pytest.mark.parametrize("shape", LARGE)
def test_with_spare_ranks_the_error_is_within_a_percent(shape: tuple[int, int], spectrum: Spectrum) -> None:
    matrix = matrix_with(*shape, spectrum)
    found = truncated_svd(matrix, SPARE_RANK, seed=1, has_spare=True)
    for rank in (SPARE_RANK, SPARE_RANK * 3 // 4):
        lower = found.first(rank)
        assert error_of(matrix, lower.left * lower.values, lower.right) <= 1.01 * bound_of(matrix, rank)


@pytest.mark.parametrize("name", ["power 0.5", "power 1", "power 2", "exponential", "rank 8 and noise"])
@pytest.mark.parametrize("shape", LARGE)
def test_of_a_falling_spectrum_only_the_last_ranks_are_less_accurate(shape: tuple[int, int], name: str) -> None:
    matrix = matrix_with(*shape, SPECTRA[name])
    rank = SPARE_RANK * 3 // 4
    check(matrix, truncated_svd(matrix, SPARE_RANK, seed=1, has_spare=True).first(rank), rank)


def test_spare_ranks_save_the_exact_method(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = matrix_with(200, 260, SPECTRA["power 1"])
    assert truncated_svd(matrix, SPARE_RANK, seed=0).exact
    assert not truncated_svd(matrix, SPARE_RANK, seed=0, has_spare=True).exact
    assert truncated_svd(matrix, 80, seed=0, has_spare=True).exact  # so many save nothing
    monkeypatch.setattr(krylov, "_WIDE_TOLERANCE", -1.0)  # nothing is good enough
    monkeypatch.setattr(krylov, "_FLOOR", 0.0)
    assert truncated_svd(matrix, SPARE_RANK, seed=0, has_spare=True).exact


@pytest.mark.parametrize("seed", range(5))
def test_no_seed_is_unlucky(seed: int) -> None:
    matrix = matrix_with(200, 240, SPECTRA["power 0.5"], seed=seed)
    found = truncated_svd(matrix, RANK, seed=seed)
    assert not found.exact
    check(matrix, found, RANK)


@pytest.mark.parametrize("scale", [1e-20, 1e-12, 1e12, 1e20])
@pytest.mark.parametrize("name", ["power 1", "rank 8", "flat"])
@pytest.mark.parametrize("shape", [(48, 64), (200, 260)])
def test_the_scale_does_not_matter(shape: tuple[int, int], name: str, scale: float) -> None:
    matrix = matrix_with(*shape, SPECTRA[name]) * scale
    check(matrix, truncated_svd(matrix, RANK, seed=1), RANK)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (1, 500), (2, 3), (3, 2), (5, 5)])
def test_tiny_matrices(shape: tuple[int, int]) -> None:
    matrix = matrix_with(*shape, SPECTRA["power 1"])
    for rank in range(1, min(shape) + 1):
        check(matrix, truncated_svd(matrix, rank, seed=0), rank)


@pytest.mark.parametrize("shape", [(16, 600), (600, 16), (200, 1800), (1800, 200)])
def test_long_matrices(shape: tuple[int, int]) -> None:
    matrix = matrix_with(*shape, SPECTRA["power 0.5"])
    check(matrix, truncated_svd(matrix, 8, seed=0), 8)
    check(matrix, exact_svd(matrix, 8), 8)


@pytest.mark.parametrize("shape", [(40, 60), (200, 260)])
def test_the_zero_matrix(shape: tuple[int, int]) -> None:
    found = truncated_svd(torch.zeros(shape), RANK, seed=0)
    assert not found.values.any()
    assert torch.isfinite(found.left).all()
    assert torch.isfinite(found.right).all()


@pytest.mark.parametrize("shape", [(40, 60), (200, 260)])
def test_a_matrix_of_few_values(shape: tuple[int, int]) -> None:
    matrix = torch.zeros(shape)
    matrix[3, 5], matrix[7, 2], matrix[30, 50] = 1.0, -2.0, 1e-3
    found = truncated_svd(matrix, RANK, seed=0)
    assert error_of(matrix, found.left * found.values, found.right) <= 1e-6
    torch.testing.assert_close(found.values[:3], torch.tensor([2.0, 1.0, 1e-3]), rtol=1e-4, atol=1e-6)


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


@pytest.mark.parametrize("shape", [(48, 64), (400, 260)])
def test_the_first_vectors_are_the_decomposition_of_a_lower_rank(shape: tuple[int, int]) -> None:
    matrix = matrix_with(*shape, SPECTRA["power 0.5"])
    check(matrix, truncated_svd(matrix, RANK, seed=1).first(8), 8)


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


def test_the_global_random_stream_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    truncated_svd(matrix_with(200, 260, SPECTRA["flat"]), RANK, seed=7)
    assert torch.equal(torch.rand(1), expected)


def test_the_matrix_is_not_changed() -> None:
    for shape in ((64, 64), (200, 260)):
        matrix = matrix_with(*shape, SPECTRA["power 1"])
        before = matrix.clone()
        truncated_svd(matrix, RANK, seed=0)
        assert torch.equal(matrix, before)


def test_a_transposed_view_is_decomposed_as_its_values() -> None:
    matrix = matrix_with(260, 200, SPECTRA["power 1"])
    check(matrix.mT, truncated_svd(matrix.mT, RANK, seed=0), RANK)
