"""Fewer ranks for products: as good as the SVD of the dense product, of exactly so many ranks, and never built."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lbm_lora.adapter import Adapter, LoraModule, Status
from lbm_lora.combine import Products, Summand
from lbm_lora.combine.shrink import KEPT, Shrinking
from lbm_lora.factorize import Moment, Weights, to_matrix
from lbm_lora.naming import ModuleName, ParamName
from lbm_lora.ranks import Choice, WeightsOf, unweighted
from spectra import bound_of

Rand = Callable[..., Tensor]

SHAPES = {
    "wide": (40, 90),
    "tall": (120, 30),
    "conv": (24, 10, 3, 3),
    "full": (8, 12),
    "thin": (4, 6, 3, 3),
}
RANKS = {"wide": 12, "tall": 16, "conv": 14, "full": 8, "thin": 3}


def module(name: str, rand: Rand, rank: int, alpha: float | None = None) -> LoraModule:
    """One whose singular values fall, with factors that share no directions with them."""
    shape = SHAPES[name]
    fall = 0.8 ** torch.arange(rank)
    up, down = rand(shape[0], rank) * fall, rand(rank, *shape[1:])
    mix = torch.linalg.qr(rand(rank, rank)).Q + 0.1 * rand(rank, rank)
    down = (torch.linalg.inv(mix) @ down.flatten(1)).reshape(down.shape)
    up = (up @ mix).reshape(shape[0], rank, *(1 for _ in shape[2:]))
    return LoraModule(ModuleName(name), down, up, rank if alpha is None else alpha)


@pytest.fixture
def adapter(rand: Rand) -> Adapter:
    modules = {ModuleName(name): module(name, rand, rank, alpha=5.0) for name, rank in RANKS.items()}
    dense = {ParamName("wide.bias"): rand(40), ParamName("whole.weight"): rand(6, 9), ParamName("norm.weight"): rand(7)}
    return Adapter(modules, dense)


def shrinking(
    adapter: Adapter,
    dtype: torch.dtype = torch.float32,
    weights_of: WeightsOf = unweighted,
    scale: float = 1.0,
    **left_out: str,
) -> Shrinking:
    products = Products((Summand.of(adapter, scale),))
    return Shrinking(
        products=products,
        dtype=dtype,
        prefix="",
        weights_of=weights_of,
        left_out={ParamName(name.replace("_", ".")): reason for name, reason in left_out.items()},
    )


def weight(name: str) -> ParamName:
    return ParamName(f"{name}.weight")


@pytest.mark.parametrize("name", SHAPES)
def test_every_rank_is_exact_and_as_good_as_the_svd_of_the_product(adapter: Adapter, name: str) -> None:
    matrix = to_matrix(adapter.modules[ModuleName(name)].delta())
    for rank in range(1, RANKS[name]):
        found = shrinking(adapter).outcome(weight(name), rank)
        assert found.module is not None
        assert found.module.rank == found.row.rank == rank
        assert (found.module.shape, found.module.scaling) == (SHAPES[name], 1.0)
        error = float((matrix.double() - to_matrix(found.module.delta()).double()).norm())
        assert error <= bound_of(matrix, rank)
        assert math.sqrt(found.row.measure.error_sq) == pytest.approx(error, rel=1e-3)
        assert math.sqrt(found.row.measure.delta_sq) == pytest.approx(float(matrix.norm()), rel=1e-5)


@pytest.mark.parametrize("rank", [14, 15, 500])
def test_no_rank_is_added_and_what_has_no_more_is_kept_to_the_bit(adapter: Adapter, rank: int) -> None:
    found, given = shrinking(adapter).outcome(weight("conv"), rank), adapter.modules[ModuleName("conv")]
    assert found.module is not None
    assert found.row.reason == KEPT
    assert torch.equal(found.module.up, given.up)
    assert torch.equal(found.module.down, given.down)
    assert found.module.alpha == given.alpha
    assert found.row.measure.relative_error < 1e-6


def test_biases_norms_and_what_is_left_out(adapter: Adapter) -> None:
    found = shrinking(adapter, torch.bfloat16, wide_bias="in --exclude", tall_weight="in --exclude")
    assert found.dense() == {"norm.weight": (7,)}
    assert found.matrices() == [weight(name) for name in ("wide", "conv", "full", "thin", "whole")]
    choice = Choice(ranks=dict.fromkeys(found.matrices(), 2), nbytes=0, error_sq=0.0)
    rows = {one.row.name: one.row for (one,) in found.outcomes([choice])}
    assert list(rows) == adapter.params
    assert {row.status for row in rows.values()} == {Status.LORA, Status.DENSE, Status.EXCLUDED}
    for name in ("wide.bias", "tall.weight"):
        row = rows[ParamName(name)]
        assert (row.status, row.reason, row.measure.relative_error) == (Status.EXCLUDED, "in --exclude", 1.0)
        assert row.measure.delta_sq == pytest.approx(float(adapter.delta(row.name).square().sum()), rel=1e-5)  # pyright: ignore[reportOptionalMemberAccess]
    assert 0 < rows[ParamName("norm.weight")].measure.relative_error < 0.01


def test_the_survey_knows_what_each_rank_leaves(adapter: Adapter) -> None:
    spectra, others = shrinking(adapter, wide_bias="in --exclude").survey()
    assert [one.name for one in spectra] == [weight(name) for name in (*SHAPES, "whole")]
    for one in spectra:
        delta = adapter.delta(one.name)
        assert delta is not None
        values = torch.linalg.svdvals(to_matrix(delta).double())
        assert torch.allclose(one.squares, values[: len(one.squares)].square(), rtol=1e-4, atol=1e-9)
        assert float(values[len(one.squares) :].norm()) < 1e-5
        assert one.worth == RANKS.get(one.name.removesuffix(".weight"), 6)
    bias, norm = (float(adapter.dense[ParamName(name)].square().sum()) for name in ("wide.bias", "norm.weight"))
    assert (others.delta_sq, others.error_sq) == pytest.approx((bias + norm, bias), rel=1e-5)
    # only where the factors take more bytes, the names of three tensors included
    assert [one.name for one in spectra if one.dense < math.inf] == [weight(name) for name in ("full", "thin", "whole")]


@pytest.fixture
def weights_of(rand: Rand) -> WeightsOf:
    def moment(size: int, repeat: int = 1) -> Moment:
        rows = rand(2 * size, size) * 3.0 ** -torch.linspace(0, 4, size)
        return Moment(dense=rows.mT @ rows / len(rows), repeat=repeat)

    found = {
        ModuleName(name): Weights(
            inputs=moment(shape[1], torch.Size(shape[2:]).numel()), outputs=moment(shape[0]), scale=3.0
        )
        for name, shape in {**SHAPES, "whole": (6, 9)}.items()
    }
    return found.__getitem__


@pytest.mark.parametrize("name", ["wide", "tall", "conv"])
def test_in_an_outputs_norm_the_factors_are_the_best_there(adapter: Adapter, weights_of: WeightsOf, name: str) -> None:
    whitening = weights_of(ModuleName(name)).whitening()
    matrix = to_matrix(adapter.modules[ModuleName(name)].delta())
    values = torch.linalg.svdvals(whitening(matrix).double())
    (spectrum,) = (one for one in shrinking(adapter, weights_of=weights_of).survey()[0] if one.name == weight(name))
    assert torch.allclose(spectrum.squares.sqrt(), values[: len(spectrum.squares)], rtol=1e-3, atol=1e-4 * values[0])
    plain = shrinking(adapter)
    for rank in (2, 5):
        found = shrinking(adapter, weights_of=weights_of).outcome(weight(name), rank)
        assert found.module is not None
        error = float(whitening(matrix - to_matrix(found.module.delta())).double().norm())
        assert error <= 1.001 * float(values[rank:].norm()) + 1e-5 * float(values.norm())
        other = plain.outcome(weight(name), rank).module
        assert other is not None
        assert error < 0.97 * float(whitening(matrix - to_matrix(other.delta())).double().norm())
