"""Merged LoRAs: the algebra of the sum, and what is stored of it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lbm_lora.adapter import Adapter, AdapterBuilder, AdapterMetadata, Ledger, LoraModule, LoraScale, store_outcomes
from lbm_lora.combine import (
    Products,
    Ranks,
    Shrinking,
    Summand,
    added_ranks,
    chosen_ranks,
    combine_by,
    lossless_ranks,
)
from lbm_lora.combine.products import SUM, Combine
from lbm_lora.configs.rank_options import RankOptions
from lbm_lora.factorize import FixedRank
from lbm_lora.naming import ModuleName, ParamName
from lbm_lora.ranks import Choice, rank_rule

Rand = Callable[..., Tensor]
LINEAR, CONV, SMALL, BIAS = (ParamName(f"{name}") for name in ("a.weight", "b.weight", "c.weight", "a.bias"))


def lora(rand: Rand, rank: int = 3, dtype: torch.dtype = torch.float32) -> Adapter:
    shapes = {"a": ((rank, 60), (50, rank)), "b": ((rank, 5, 3, 3), (40, rank, 1, 1)), "c": ((rank, 30), (4, rank))}
    modules = {
        ModuleName(name): LoraModule(ModuleName(name), rand(*down).to(dtype), rand(*up).to(dtype), 0.7 * rank)
        for name, (down, up) in shapes.items()
    }
    return Adapter(modules, {BIAS: rand(50).to(dtype)}, prefix="denoiser.")


def shrinking_of(
    summands: list[Summand], *, is_exact: bool = False, dtype: torch.dtype = torch.float32, combine: Combine = SUM
) -> Shrinking:
    products = Products(tuple(summands), combine)
    return Shrinking(products=products, dtype=dtype, prefix="denoiser.", left_out={}, keeps_factors=is_exact)


def stored(shrinking: Shrinking, ranks: Ranks) -> tuple[Adapter, Ledger]:
    store = AdapterBuilder("denoiser.", shrinking.dtype, AdapterMetadata())
    (ledger,) = store_outcomes(shrinking.outcomes([Choice(ranks=dict(ranks), nbytes=0, error_sq=0.0)]), [store])
    return store.adapter(), ledger


def merged(
    summands: list[Summand], *, is_exact: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[Adapter, Ledger]:
    shrinking = shrinking_of(summands, is_exact=is_exact, dtype=dtype)
    return stored(shrinking, added_ranks(shrinking) if is_exact else lossless_ranks(shrinking))


def total(loras: list[tuple[Adapter, float]], name: ParamName) -> Tensor:
    deltas = [scale * delta.double() for one, scale in loras if (delta := one.delta(name)) is not None]
    return sum(deltas[1:], start=deltas[0])


def error(found: Adapter, loras: list[tuple[Adapter, float]], name: ParamName) -> float:
    expected, delta = total(loras, name), found.delta(name)
    assert delta is not None
    return float(torch.linalg.norm(delta.double() - expected) / torch.linalg.norm(expected))


@pytest.mark.parametrize("is_exact", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_fused_sum(rand: Rand, is_exact: bool, dtype: torch.dtype) -> None:
    loras = [(lora(rand, 3, dtype), 1.0), (lora(rand, 5, dtype), -0.37), (lora(rand, 1), 2.0)]
    found, ledger = merged([Summand.of(*one) for one in loras], is_exact=is_exact)
    assert found.module_at(LINEAR)
    assert SMALL in found.dense  # nine ranks of a matrix with four rows
    assert [error(found, loras, name) for name in (LINEAR, CONV, SMALL, BIAS)] == pytest.approx([0] * 4, abs=1e-6)
    assert ledger.total().relative_error <= 1e-6
    assert ledger.counts() == {"lora": 2, "dense": 2, "unchanged": 0, "excluded": 0}


def test_exact_keeps_the_factors(rand: Rand) -> None:
    one, two = lora(rand), lora(rand)
    found, _ = merged([Summand.of(one), Summand.of(two, 0.5)], is_exact=True)
    module = found.modules[ModuleName("a")]
    assert torch.equal(module.down, torch.cat([one.modules[module.name].down, two.modules[module.name].down]))
    assert (module.rank, module.scaling) == (6, 1.0)


def test_a_scale_of_0_removes_a_lora_and_by_layer_a_layer(rand: Rand) -> None:
    one, two = lora(rand), lora(rand)
    found, _ = merged([Summand.of(one), Summand.of(two, 0.0)])
    assert max(error(found, [(one, 1.0)], name) for name in (LINEAR, CONV, SMALL, BIAS)) < 1e-6
    assert found.modules[ModuleName("a")].rank == 3
    found, ledger = merged([Summand.of(one, LoraScale.parse("0.5,a=0"))])
    assert LINEAR not in found.params
    assert BIAS not in found.params
    assert ledger.counts() == {"lora": 1, "dense": 1, "unchanged": 2, "excluded": 0}
    assert error(found, [(one, 0.5)], CONV) < 1e-6


def test_dense_in_one_file_and_factors_in_the_other(rand: Rand) -> None:
    one, dense = lora(rand), Adapter({}, {LINEAR: rand(50, 60)})
    found, ledger = merged([Summand.of(one), Summand.of(dense, 0.5)])
    assert LINEAR in found.dense
    assert error(found, [(one, 1.0), (dense, 0.5)], LINEAR) < 1e-6
    assert ledger.total().relative_error < 1e-6


def test_other_methods_are_stored_too(rand: Rand) -> None:
    shrinking = shrinking_of([Summand.of(lora(rand)), Summand.of(lora(rand))], combine=combine_by("ties"))
    found, ledger = stored(shrinking, lossless_ranks(shrinking))
    assert ledger.total().relative_error < 1e-6
    delta, expected = found.delta(LINEAR), shrinking.products.dense(LINEAR)
    assert delta is not None
    assert expected is not None
    torch.testing.assert_close(delta, expected, rtol=1e-3, atol=1e-4)


def test_a_rank_is_a_cap_and_its_error_the_least(rand: Rand) -> None:
    loras = [(lora(rand, 3), 1.0), (lora(rand, 4), 0.5)]
    shrinking = shrinking_of([Summand.of(*one) for one in loras])
    found, ledger = stored(shrinking, lossless_ranks(shrinking, FixedRank(linear=5, conv=9)))
    assert [module.rank for module in found.modules.values()] == [5, 7]
    values = torch.linalg.svdvals(total(loras, LINEAR))
    expected = float(values[5:].square().sum().sqrt() / values.square().sum().sqrt())
    assert error(found, loras, LINEAR) == pytest.approx(expected, rel=1e-5)
    (row,) = [one for one in ledger if one.name == LINEAR]
    assert row.measure.relative_error == pytest.approx(expected, rel=1e-4)


def test_a_rule_chooses_for_all_layers_together(rand: Rand) -> None:
    loras = [(lora(rand, 3), 1.0), (lora(rand, 4), 0.5)]
    shrinking = shrinking_of([Summand.of(*one) for one in loras], dtype=torch.float16)
    rule = rank_rule(RankOptions(max_error=0.3), is_calibrated=False, has_images=False)
    found, ledger = stored(shrinking, chosen_ranks(shrinking, rule, AdapterMetadata()))
    assert 0.2 < ledger.total().relative_error <= 0.3
    assert len(found.modules) > 0
