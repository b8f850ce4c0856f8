"""Merged LoRAs: the algebra of the sum, the base, the options, and what is stored."""

from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

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
    lossless_ranks,
    merge_rule,
    merged_base,
)
from lbm_lora.combine.merge import MergeOptions
from lbm_lora.combine.products import SUM, Combine
from lbm_lora.errors import ConfigError, WrongBaseError
from lbm_lora.factorize import FixedRank
from lbm_lora.naming import ModuleName, ParamName
from lbm_lora.progress import LbmLoraWarning
from lbm_lora.ranks import Choice, FixedRanks, RankOptions, rank_rule

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


def made_for(base: str, tuned: str = "", *, name: str = "", scale: float = 1.0) -> Summand:
    module = LoraModule(ModuleName("a"), torch.ones(1, 2), torch.ones(2, 1), 1.0)
    metadata = AdapterMetadata("1", base, f"tensors of {base}", tuned)
    return Summand.of(Adapter({module.name: module}, {}, metadata, path=Path(f"{name or base}.safetensors")), scale)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_chain_in_any_order(order: tuple[int, ...]) -> None:
    loras = [
        made_for("X", "Y", name="extraction"),
        made_for("Y", "Z", name="further"),
        made_for("Z", name="last"),
    ]
    found = merged_base([loras[index] for index in order])
    assert (found.fingerprint, found.tensors, found.tuned) == ("X", "tensors of X", "")
    assert found.labels == ("extraction.safetensors", "further.safetensors", "last.safetensors")


@pytest.mark.parametrize(("scale", "tuned"), [(1.0, "Z"), (0.5, "")])
def test_a_chain_of_extractions_leads_to_the_last_tuned(scale: float, tuned: str) -> None:
    assert merged_base([made_for("Y", "Z"), made_for("X", "Y", scale=scale)]).tuned == tuned


@pytest.mark.parametrize(
    "loras",
    [
        [made_for("X"), made_for("Y")],
        [made_for("X", "Y"), made_for("Z")],
        [made_for("X", "Z"), made_for("Y", "Z")],
        [made_for("X", "Y"), made_for("Y", "X")],
        [made_for("W"), made_for("X", "Y"), made_for("Y", "X")],
        [made_for("X", "Y"), made_for("X", "Z"), made_for("Y"), made_for("Z")],
    ],
)
def test_bases_that_nothing_connects_are_refused_by_name(loras: list[Summand]) -> None:
    with pytest.raises(WrongBaseError, match=r"different bases: .*To merge them all the same: allow_other_base"):
        merged_base(loras)
    with pytest.warns(LbmLoraWarning, match="different bases"):
        found = merged_base(loras, allow_other_base=True)
    assert found.fingerprint == loras[0].adapter.metadata.base_fingerprint
    assert found.tuned == ""


def test_a_lora_that_says_nothing_is_said() -> None:
    with pytest.warns(LbmLoraWarning, match="does not say which base"):
        found = merged_base([made_for("", name="old"), made_for("X", "Y")])
    assert (found.fingerprint, found.tuned) == ("X", "")
    with pytest.warns(LbmLoraWarning, match="does not say which base"):
        assert merged_base([made_for("", name="old")]).fingerprint == ""


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"exact": True, "rank": 4}, "exact and rank both choose the ranks"),
        ({"rank": 4, "max_size": "1MB"}, "rank and max_size both choose the ranks"),
        ({"exact": True, "method": "ties"}, "exact keeps the sum, method ties changes it"),
        ({"conv_rank": 4}, "conv_rank needs rank"),
        ({"calibration": Path("s")}, "calibration weighs what is lost, but nothing is lost: add rank"),
        ({"calibration": Path("s"), "max_error": 0.1}, "use max_output_error"),
        ({"max_output_error": 0.1}, "max_output_error needs the denoiser's output: add calibration"),
        ({"density": 0.3}, "density is for method ties, dare and knots, not for sum"),
        ({"density": 0.0, "method": "ties"}, "density must be above 0 and at most 1, got 0"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        merge_rule(MergeOptions(**options))


def test_the_rule_that_options_select() -> None:
    assert merge_rule(MergeOptions()) is None
    assert merge_rule(MergeOptions(exact=True)) is None
    assert merge_rule(MergeOptions(rank=8)) == FixedRanks(ranks=(FixedRank(linear=8, conv=4),))
    assert merge_rule(MergeOptions(rank=8, conv_rank=8)) == FixedRanks(ranks=(FixedRank(linear=8, conv=8),))
    found = [merge_rule(MergeOptions(max_size="1MB")), merge_rule(MergeOptions(max_error=0.1))]
    assert [rule.option for rule in found if rule] == ["max_size", "max_error"]
    with_output = merge_rule(MergeOptions(max_output_error=0.1, calibration=Path("s")))
    assert with_output is not None
    assert with_output.option == "max_output_error"
