"""Truncation in the norm of a network's output, against brute force in fp64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lbm_lora.factorize import (
    Factors,
    Moment,
    MomentAccumulator,
    WeightedSVD,
    Weights,
    Whitening,
    truncated_svd,
    weighted_factors,
    weighted_svd,
)
from spectra import SPECTRA, matrix_with

Rand = Callable[..., Tensor]
FORMS: dict[str, dict[str, Any]] = {
    "dense": {},
    "sketched": {"dense_up_to": 0, "sketch_rank": 6},
    "diagonal": {"dense_up_to": 0, "sketch_rank": 0},
}


def moment_of(size: int, form: str, *, repeat: int = 1, spectrum: str = "power 1", seed: int = 0) -> Moment:
    accumulator = MomentAccumulator(size, repeat=repeat, **FORMS[form])
    accumulator.add(matrix_with(4 * size, size, SPECTRA[spectrum], seed))
    return accumulator.result()


def weights_of(form: str, *, repeat: int = 1, spectrum: str = "power 1", seed: int = 0, scale: float = 1) -> Weights:
    """Of matrices (24, 36)."""
    inputs = moment_of(36 // repeat, form, repeat=repeat, spectrum=spectrum, seed=seed)
    return Weights(inputs=inputs, outputs=moment_of(24, form, spectrum=spectrum, seed=seed + 1), scale=scale)


def ridged(moment: Moment, ridge: float) -> Tensor:
    """M + ridge * mean(diag M) * I in fp64, over all columns."""
    matrix = torch.diag(moment.variances())
    if moment.dense is not None:
        matrix = moment.dense.double()
    elif moment.factor is not None and moment.diagonal is not None:
        matrix = torch.diag(moment.diagonal.double()) + moment.factor.double() @ moment.factor.double().mT
    matrix = matrix + ridge * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=torch.float64)
    return torch.kron(matrix, torch.eye(moment.repeat, dtype=torch.float64))


def symmetric_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT


def brute_force(matrix: Tensor, weights: Weights) -> tuple[Tensor, Callable[[Tensor], float]]:
    """(singular values, squared error of an error matrix) by symmetric roots and by the trace."""
    assert weights.inputs is not None
    assert weights.outputs is not None
    c, g = ridged(weights.inputs, weights.ridge), ridged(weights.outputs, weights.ridge) * weights.scale
    values = torch.linalg.svdvals(symmetric_root(g) @ matrix.double() @ symmetric_root(c))
    return values, lambda error: float((g @ error.double() @ c @ error.double().mT).trace())


@given(
    form=st.sampled_from(sorted(FORMS)),
    repeat=st.sampled_from([1, 9]),
    rank=st.integers(1, 23),
    name=st.sampled_from(["flat", "power 0.5", "power 1", "exponential", "rank 8"]),
    spectrum=st.sampled_from(["flat", "power 1", "power 2", "rank 8"]),
    scale=st.sampled_from([1.0, 0.1, 30.0]),
    seed=st.integers(0, 2),
)
def test_the_truncation_is_the_optimum(
    form: str, repeat: int, rank: int, name: str, spectrum: str, scale: float, seed: int
) -> None:
    matrix = matrix_with(24, 36, SPECTRA[name], seed)
    weights = weights_of(form, repeat=repeat, spectrum=spectrum, seed=seed, scale=scale)
    whitening = weights.whitening()
    svd = weighted_svd(matrix, rank, whitening, seed=seed)
    values, error_of = brute_force(matrix, weights)
    total, optimum = float(values.square().sum()), float(values[rank:].square().sum())
    torch.testing.assert_close(svd.values.double(), values[:rank], rtol=1e-4, atol=1e-5 * float(values[0]))
    assert svd.energy == pytest.approx(total, rel=1e-4)
    assert svd.rest == pytest.approx(optimum, rel=1e-3, abs=1e-6 * total)
    factors = weighted_factors(svd, torch.float32, whitening)
    assert error_of(matrix - factors.product()) <= 1.002 * optimum + 1e-8 * total
    error, size = output_error(matrix, factors, whitening)
    assert error == pytest.approx(error_of(matrix - factors.product()), rel=1e-3, abs=1e-8 * total)
    assert size == pytest.approx(total, rel=1e-4)
    assert output_error(matrix, None, whitening) == (size, size)


def test_a_large_matrix_goes_through_the_randomized_method() -> None:
    """Above 192 the truncated SVD is randomized; the map back must hold there as well."""
    matrix = matrix_with(200, 260, SPECTRA["power 1"])
    weights = Weights(inputs=moment_of(260, "sketched"), outputs=moment_of(200, "dense"))
    whitening = weights.whitening()
    svd = weighted_svd(matrix, 12, whitening, seed=0)
    values, error_of = brute_force(matrix, weights)
    optimum = float(values[12:].square().sum())
    assert error_of(matrix - weighted_factors(svd, torch.float32, whitening).product()) <= 1.003 * optimum
    assert svd.rest == pytest.approx(optimum, rel=3e-3)


def output_error(delta: Tensor, approximation: Factors | None, whitening: Whitening) -> tuple[float, float]:
    """(squared error, squared norm) of a delta in the weighted norm."""
    left = delta if approximation is None else delta - approximation.product()
    return float(whitening(left).double().square().sum()), float(whitening(delta).double().square().sum())


def naive(svd: WeightedSVD, dtype: torch.dtype) -> Factors:
    """Both factors rounded, each for itself."""
    return Factors((svd.left * svd.values.sqrt()).to(dtype), (svd.values.sqrt()[:, None] * svd.right).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rank", "share"), [(4, 0.95), (20, 0.8)])
@pytest.mark.parametrize("spectrum", ["power 1"])
def test_the_fit_of_up_takes_back_some_of_what_rounding_cost(
    spectrum: str, rank: int, share: float, dtype: torch.dtype
) -> None:
    fitted, plain = 0.0, 0.0
    for seed in range(6):  # how far a matrix is rounded is chance
        matrix, weights = (
            matrix_with(24, 36, SPECTRA["power 1"], seed),
            weights_of("dense", spectrum=spectrum, seed=seed),
        )
        whitening = weights.whitening()
        svd = weighted_svd(matrix, rank, whitening, seed=0)
        values, error_of = brute_force(matrix, weights)
        optimum = float(values[rank:].square().sum())
        fitted += error_of(matrix - weighted_factors(svd, dtype, whitening).product()) - optimum
        plain += error_of(matrix - naive(svd, dtype).product()) - optimum
    assert 0 < fitted < share * plain


def test_the_error_is_that_of_a_linear_network(rand: Rand) -> None:
    """For outputs A W x the error of W is mean ||A E x||^2 without approximation: G is A^T A."""
    vectors, after, delta = rand(200, 12), rand(5, 8), rand(8, 12)
    vectors *= torch.arange(1, 13) ** -1.0
    inputs, outputs = MomentAccumulator(12), MomentAccumulator(8)
    inputs.add(vectors, weight=1 / 200)
    probes = rand(40000, 5)
    outputs.add(probes @ after, weight=1 / 40000)
    exact = float((vectors @ delta.mT @ after.mT).square().sum() / 200)
    weights = Weights(inputs=inputs.result(), outputs=outputs.result(), ridge=1e-7)
    whitening = weights.whitening()
    assert output_error(delta, None, whitening)[1] == pytest.approx(exact, rel=0.03)
    errors: list[float] = []
    plain = truncated_svd(delta, 3, seed=0)
    for product in (
        weighted_factors(weighted_svd(delta, 3, whitening, seed=0), torch.float32, whitening).product(),
        (plain.left * plain.values) @ plain.right,
    ):
        errors.append(float((vectors @ (delta - product).mT @ after.mT).square().sum() / 200))
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_a_layer_that_does_nothing_costs_nothing(side: str) -> None:
    """Inputs that are always zero, or outputs that reach nothing."""
    matrix = matrix_with(24, 36, SPECTRA["power 1"])
    dead = Moment(dense=torch.zeros(36, 36)) if side == "inputs" else Moment(diagonal=torch.zeros(24))
    values: dict[str, Any] = {side: dead}
    whitening = Weights(**values).whitening()
    svd = weighted_svd(matrix, 3, whitening, seed=0)
    assert svd.energy == 0
    factors = weighted_factors(svd, torch.bfloat16, whitening)
    assert torch.equal(factors.product(), torch.zeros(24, 36))
    assert output_error(matrix, factors, whitening) == (0, 0)


@pytest.mark.parametrize("scale", [1e-10, 1e-12, 1e-20])
def test_rows_that_fp16_flushes_are_left_out(scale: float) -> None:
    """The numbers of fp16 end at 6e-8: what is left of `down` is fitted, and the error never exceeds the delta."""
    matrix, whitening = matrix_with(24, 36, SPECTRA["power 1"]) * scale, weights_of("dense").whitening()
    factors = weighted_factors(weighted_svd(matrix, 12, whitening, seed=0), torch.float16, whitening)
    error, size = output_error(matrix, factors, whitening)
    assert error <= 1.001 * size
