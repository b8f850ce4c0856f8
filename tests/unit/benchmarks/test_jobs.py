"""The yardstick of the error, and which modules it is put to."""

import pytest
import torch

from benchmarks.jobs import optimum, sample
from lbm_lora.naming import ModuleName
from spectra import SPECTRA, matrix_with


@pytest.mark.parametrize("shape", [(40, 90), (90, 40)])
@pytest.mark.parametrize("spectrum", ["power 0.5", "power 1", "exponential"])
def test_the_optimum_is_that_of_the_exact_svd(shape: tuple[int, int], spectrum: str) -> None:
    matrix = matrix_with(*shape, SPECTRA[spectrum]).double()
    singular = torch.linalg.svdvals(matrix)
    norm, best = optimum(matrix, 8)
    assert norm == pytest.approx(float(singular.norm()), rel=1e-9)
    assert best == pytest.approx(float(singular[8:].norm()), rel=1e-6)


def test_nothing_is_left_at_full_rank() -> None:
    assert optimum(torch.randn(5, 9, dtype=torch.float64), 5)[1] == 0


def test_a_sample_has_modules_of_every_shape_spread_over_the_network() -> None:
    shapes = {ModuleName(f"square.{index}"): (8, 8) for index in range(10)} | {ModuleName("conv"): (8, 8, 3, 3)}
    assert sample(shapes, 2) == ["square.2", "square.7", "conv"]
    assert sample(shapes, 0) == list(shapes)
