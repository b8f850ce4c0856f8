"""Deltas of several LoRAs as products, and other ways than their sum."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lbm_lora.adapter import Adapter, LoraModule
from lbm_lora.choices import MergeMethod
from lbm_lora.combine import Products, Summand
from lbm_lora.combine.methods import combine_by, core_of, dare, knots, orthogonalized, ties
from lbm_lora.combine.products import difference, product_norm
from lbm_lora.errors import AdapterError
from lbm_lora.factorize import Factors
from lbm_lora.naming import ModuleName, ParamName

Rand = Callable[..., Tensor]
LINEAR, CONV, BIAS = ParamName("a.weight"), ParamName("b.weight"), ParamName("a.bias")


def lora(rand: Rand, rank: int = 2) -> Adapter:
    a = LoraModule(ModuleName("a"), rand(rank, 12), rand(10, rank), alpha=0.5 * rank)
    b = LoraModule(ModuleName("b"), rand(rank, 4, 3, 3), rand(6, rank, 1, 1), alpha=float(rank))
    return Adapter({a.name: a, b.name: b}, {BIAS: rand(10)})


def expected(summands: list[tuple[Adapter, float]], name: ParamName) -> Tensor:
    parts = [scale * delta for one, scale in summands if (delta := one.delta(name)) is not None]
    return sum(parts[1:], start=parts[0])


@pytest.mark.parametrize("name", [LINEAR, CONV, BIAS])
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_the_delta_is_the_scaled_sum(rand: Rand, name: ParamName, rank: int) -> None:
    one, two = lora(rand, rank), lora(rand)
    products = Products((Summand.of(one, 0.5), Summand.of(two, -2.0)))
    found = products.dense(name)
    assert found is not None
    torch.testing.assert_close(found, expected([(one, 0.5), (two, -2.0)], name))


def test_shapes_that_differ_name_both_files(rand: Rand) -> None:
    with pytest.raises(AdapterError, match=r"^a\.bias: the LoRA has shape \(10,\), the LoRA has \(9,\)"):
        Products((Summand.of(lora(rand)), Summand.of(Adapter({}, {BIAS: rand(9)}))))


def test_norms_without_the_product(rand: Rand) -> None:
    low, full = Factors(rand(20, 3), rand(3, 30)), Factors(rand(4, 8), rand(8, 30))
    for factors in (low, full):
        assert product_norm(factors) == pytest.approx(float(torch.linalg.norm(factors.up @ factors.down)), rel=1e-5)
    assert difference(low, low) < 1e-5 * product_norm(low)
    assert difference(None, low) == pytest.approx(product_norm(low))
    assert difference(low, None) == pytest.approx(product_norm(low))
    assert difference(None, None) == 0


@pytest.mark.parametrize("spoiled", ["factors", "dense", "scale"])
def test_a_delta_whose_square_leaves_fp32_is_refused(rand: Rand, spoiled: str) -> None:
    good = lora(rand)
    a = good.modules[ModuleName("a")]
    large = {
        "factors": Adapter({a.name: replace(a, up=a.up * 1e10, down=a.down * 1e10)}, {}),
        "dense": Adapter({}, {BIAS: rand(10) * 1e20}),
        "scale": Adapter({a.name: replace(a, up=a.up * 1e8)}, {}),
    }[spoiled]
    with pytest.raises(AdapterError, match=r"a\.(weight|bias): .* makes a delta of norm .*, the limit is 1e\+12"):
        Products((Summand.of(good), Summand.of(large, 1e6 if spoiled == "scale" else 1.0)))


NAME = ParamName("a.weight")
OTHERS: tuple[MergeMethod, ...] = ("ties", "dare", "knots", "core")


def pair(rand: Rand) -> list[Factors]:
    return [Factors(rand(40, 3), rand(3, 50)), Factors(2 * rand(40, 5), rand(5, 50))]


def total(terms: list[Factors]) -> Tensor:
    return sum((term.product() for term in terms), start=torch.zeros(40, 50))


def test_the_core_holds_each_term_without_loss(rand: Rand) -> None:
    terms = pair(rand)
    core = core_of(terms)
    assert core.left.shape == (40, 8)
    assert core.right.shape == (8, 50)
    for term, small in zip(terms, core.cores, strict=True):
        torch.testing.assert_close(core.left @ small @ core.right, term.product(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["sum", *OTHERS])
def test_neither_the_order_nor_the_split_of_the_factors_matters(rand: Rand, method: MergeMethod) -> None:
    one, two = pair(rand)
    mix = rand(5, 5) + 3 * torch.eye(5)
    split = Factors(two.up @ mix, torch.linalg.solve(mix, two.down))
    combine = combine_by(method, density=0.7, seed=3).matrices
    first = combine(NAME, [one, two]).product()
    torch.testing.assert_close(combine(NAME, [split, one]).product(), first, rtol=1e-3, atol=1e-3)


def test_ties_by_hand() -> None:
    terms = [torch.tensor([4.0, -1.0, 2.0, 0.1]), torch.tensor([2.0, 3.0, -5.0, 0.2])]
    assert ties(terms, 1.0).tolist() == pytest.approx([3.0, 3.0, -5.0, 0.15])
    assert ties(terms, 0.5).tolist() == [4.0, 3.0, -5.0, 0.0]  # 4 and 2 are left of the first, 3 and -5 of the second


def test_dare_keeps_the_sum_in_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    terms = [torch.ones(200, 200), torch.full((200, 200), 2.0)]
    found = dare(terms, 0.25, generator)
    assert float(found.mean()) == pytest.approx(3.0, rel=0.02)
    assert set(found.unique().tolist()) == {0.0, 4.0, 8.0, 12.0}


def test_knots_is_that_of_the_matrices_side_by_side(rand: Rand) -> None:
    terms = pair(rand)
    left, values, right = torch.linalg.svd(torch.cat([term.product() for term in terms], 1), full_matrices=False)
    parts = right[:8, :50], right[:8, 50:]
    expected = left[:, :8] * values[:8] @ ties(parts, 0.6)
    torch.testing.assert_close(knots(terms, 0.6).product(), expected, rtol=1e-3, atol=1e-3)


def test_terms_without_common_directions_are_added_by_core(rand: Rand) -> None:
    left, right = torch.linalg.qr(rand(40, 8)).Q, torch.linalg.qr(rand(50, 8)).Q.mT
    terms = [Factors(left[:, :3] * 5, right[:3]), Factors(left[:, 3:], right[3:])]
    torch.testing.assert_close(orthogonalized(terms).product(), total(terms), rtol=1e-4, atol=1e-4)


def test_common_directions_share_no_singular_vector_after_core(rand: Rand) -> None:
    found = orthogonalized(pair(rand))
    gram = found.down @ found.down.mT
    torch.testing.assert_close(gram, torch.eye(8), rtol=1e-4, atol=1e-4)
    columns = torch.nn.functional.normalize(found.up, dim=0)
    torch.testing.assert_close(columns.mT @ columns, torch.eye(8), rtol=1e-4, atol=1e-4)
