"""The references do what they are taken for, and the yardstick of the error is exact."""

from pathlib import Path

import pytest
import torch

from benchmarks.perf import jobs
from benchmarks.perf.pair import Pair, make_pair
from lbm_lora import open_checkpoint
from lbm_lora.naming import ModuleName
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


def test_copies_are_equal(tmp_path: Path) -> None:
    source, targets = tmp_path / "source", [tmp_path / "a", tmp_path / "b"]
    source.write_bytes(torch.arange(1000).numpy().tobytes())
    jobs.copy(source=str(source), targets=[str(path) for path in targets])
    assert all(path.read_bytes() == source.read_bytes() for path in targets)


def test_both_kinds_of_svd_are_timed(pair: Pair) -> None:
    found = jobs.svd(base=str(pair.base), tuned=str(pair.tuned), name="denoiser.conv_in.weight")
    assert found.keys() == {"full_s", "thin_s"}
    assert min(found.values()) > 0


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


def test_a_sample_has_modules_of_every_shape_spread_over_the_network() -> None:
    shapes = {ModuleName(f"square.{index}"): (8, 8) for index in range(10)} | {ModuleName("conv"): (8, 8, 3, 3)}
    assert jobs.sample(shapes, 2) == ["square.2", "square.7", "conv"]
    assert jobs.sample(shapes, 0) == list(shapes)
