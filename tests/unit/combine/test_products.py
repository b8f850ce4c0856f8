"""Deltas of scaled LoRAs: the factors are those of the sum of their dense deltas."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lbm_lora.adapter import Adapter, LoraModule
from lbm_lora.combine import Products, Summand
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
