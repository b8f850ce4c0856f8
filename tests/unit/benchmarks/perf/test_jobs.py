"""The references do what they are taken for, and the yardstick of the error is exact."""

import pytest
import torch

from benchmarks.perf import jobs
from benchmarks.perf.pair import Pair, make_pair
from lbm_lora import open_checkpoint
from spectra import SPECTRA, matrix_with


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("pair"), scale=0.05)


@pytest.mark.parametrize("blocked", [False, True])
def test_the_bare_pass_adds_up_the_squares_of_all_deltas(pair: Pair, blocked: bool) -> None:
    with open_checkpoint(pair.base) as base, open_checkpoint(pair.tuned) as tuned:
        expected = sum(float((tuned.read(key).double() - base.read(key).double()).square().sum()) for key in base.specs)
    found = jobs.bare_pass(base=str(pair.base), tuned=str(pair.tuned), threads=2, blocked=blocked)
    assert found["sum_of_squares"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(40, 90), (90, 40)])
@pytest.mark.parametrize("spectrum", ["power 0.5", "power 1", "exponential"])
def test_the_optimum_is_that_of_the_exact_svd(shape: tuple[int, int], spectrum: str) -> None:
    matrix = matrix_with(*shape, SPECTRA[spectrum]).double()
    singular = torch.linalg.svdvals(matrix)
    norm, best = jobs.optimum(matrix, 8)
    assert norm == pytest.approx(float(singular.norm()), rel=1e-9)
    assert best == pytest.approx(float(singular[8:].norm()), rel=1e-6)


def test_nothing_is_left_at_full_rank() -> None:
    assert jobs.optimum(torch.randn(5, 9, dtype=torch.float64), 5)[1] == 0
