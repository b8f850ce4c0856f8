"""Folding the scaling, padding to one rank, and the way back to the same bits."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lbm_lora.adapter import LoraModule
from lbm_lora.adapter.formats.layers import KEY, Before, as_before, to_one_rank
from lbm_lora.naming import ModuleName

seeded = settings(derandomize=True, deadline=None, database=None, max_examples=60)
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
SHAPES = st.one_of(
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3]), st.sampled_from([1, 3])),
)
ALPHAS = st.sampled_from([None, 1.0, 2.0, 0.5, 3.0, 7.3, 0.1, 0.0])


def module(name: str, shape: tuple[int, ...], rank: int, alpha: float | None, dtype: torch.dtype) -> LoraModule:
    torch.manual_seed(len(name) + rank)
    kernel = shape[2:]
    up = torch.randn(shape[0], rank, *(1 for _ in kernel)).to(dtype)
    down = torch.randn(rank, *shape[1:]).to(dtype)
    return LoraModule(ModuleName(name), down, up, float(rank if alpha is None else alpha))


MODULES = st.lists(st.tuples(SHAPES, st.integers(1, 4), ALPHAS, DTYPES), min_size=1, max_size=5).map(
    lambda rows: {ModuleName(f"m{place}"): module(f"m{place}", *row) for place, row in enumerate(rows)}
)


def same(found: LoraModule, given: LoraModule) -> bool:
    return found.alpha == given.alpha and same_bits(found.up, given.up) and same_bits(found.down, given.down)


def same_bits(found: Tensor, given: Tensor) -> bool:
    return found.dtype == given.dtype and torch.equal(found, given)


@seeded
@given(MODULES)
def test_the_delta_stays_and_the_way_back_is_exact(modules: dict[ModuleName, LoraModule]) -> None:
    exported = to_one_rank(modules, {}, "denoiser.")
    for name, given_module in modules.items():
        found = exported.modules[name]
        assert found.alpha == found.rank
        torch.testing.assert_close(found.delta(), given_module.delta(), rtol=1e-6, atol=1e-6)
    if exported.padding is not None:
        assert len(set(exported.ranks.values())) == 1
        nbytes = [sum(m.up.nbytes + m.down.nbytes for m in part.values()) for part in (exported.modules, modules)]
        widened = sum(m.up.nbytes // 2 for name, m in exported.modules.items() if m.up.dtype != modules[name].up.dtype)
        assert widened or nbytes[0] == nbytes[1] + exported.padding
    before = Before.of_header({KEY: exported.before.encoded()})
    assert before is not None
    assert before == exported.before
    back, dense = as_before(exported.modules, before)
    assert dense == {}
    lossy = {name for name, alpha in zip(sorted(modules), before.alphas, strict=True) if alpha is None}
    assert all(same(back[name], modules[name]) for name in modules if name not in lossy)
    assert all(back[name].rank == modules[name].rank for name in modules)
    # only a scaling of zero, or one that rounds fp32 itself, cannot be undone
    assert all(modules[name].alpha == 0 or modules[name].up.dtype == torch.float32 for name in lossy)


def test_what_was_changed_since_then_stays_as_it_is() -> None:
    ranks = {ModuleName(n): module(n, (4, 3), rank, 4.0, torch.float32) for n, rank in (("a", 1), ("b", 2), ("c", 2))}
    exported = to_one_rank(ranks, {}, "")
    changed = {
        name: replace(m, up=m.up + 1) if name == "a" else replace(m, alpha=5.0) if name == "b" else m
        for name, m in exported.modules.items()
    }
    found, _ = as_before(changed, exported.before)
    assert [same(found[name], changed[name]) for name in found] == [True, True, False]
    fewer = {name: changed[name] for name in list(changed)[1:]}
    assert as_before(fewer, exported.before) == (fewer, {})


@pytest.mark.parametrize(
    "value",
    [None, "x", "[]", "{}", json.dumps({"prefix": "", "ranks": [1], "alphas": [], "matrices": []}),
     json.dumps({"prefix": "", "ranks": ["a"], "alphas": [1], "matrices": []}),
     json.dumps({"prefix": "", "ranks": {}, "alphas": {}, "matrices": []}),
     json.dumps({"prefix": "", "ranks": [1.0], "alphas": [1], "matrices": []}),
     json.dumps({"prefix": "", "ranks": [1], "alphas": [0], "matrices": []}),
     json.dumps({"prefix": "", "ranks": [1], "alphas": ["a"], "matrices": []}),
     json.dumps({"prefix": "", "ranks": [1], "alphas": [1], "matrices": [0.0]}),
     json.dumps({"prefix": 1, "ranks": [1], "alphas": [1], "matrices": []}),
     json.dumps({"prefix": "", "ranks": [1], "alphas": [1], "matrices": [], "replaced": []})],
)  # fmt: skip
def test_an_entry_that_is_not_ours_is_none(value: str | None) -> None:
    assert Before.of_header({} if value is None else {KEY: value}) is None
