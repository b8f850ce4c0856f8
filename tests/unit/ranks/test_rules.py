"""The rules of ranks: how they name adapters, how far a survey must go for them, and what they choose from it."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.extraction import DeltaSettings, Plan, SurveyPass, capped_plan, plan_extraction, rank_allocator
from lbm_lora.factorize import FixedRank, rank_bound
from lbm_lora.ranks import FixedRanks, RankAllocator, RankRule
from lbm_lora.ranks.rules import EnergyShare, ErrorLimit, ModuleErrorLimit, PsnrFloor, SizeLimits
from smallnet import small_state

Save = Callable[[str, Mapping[str, Tensor]], Path]

SHAPES = {
    "large.weight": (400, 420),
    "middle.weight": (200, 210),
    "small.weight": (192, 300),
    "conv.weight": (8, 4, 3, 3),
    "large.bias": (400,),
}
BOUNDS = {"large.weight": 400, "middle.weight": 200, "small.weight": 192, "conv.weight": 8, "large.bias": None}
BF16 = torch.bfloat16
PER_RANK = 2 * (400 + 420 + 200 + 210 + 192 + 300 + 8 + 4 * 9)
"""Bytes that one more rank of every matrix takes in bf16."""


@pytest.fixture
def plan(save: Save) -> Plan:
    """The matrices of `SHAPES`, decomposed at rank 5, and a bias."""
    tensors = {name: torch.zeros(shape, dtype=BF16) for name, shape in SHAPES.items()}
    base, tuned = (open_checkpoint(save(f"{side}.safetensors", tensors)).component() for side in ("base", "tuned"))
    return plan_extraction(base, tuned, FixedRank(linear=5, conv=5))


@pytest.fixture
def allocator(save: Save, tmp_path: Path) -> RankAllocator:
    """That of a small network, all of whose ranks are surveyed."""
    base, tuned = (open_checkpoint(save(f"{seed}.safetensors", small_state(seed))).component() for seed in (1, 2))
    small, settings = plan_extraction(base, tuned, FixedRank(linear=9999, conv=9999)), DeltaSettings(dtype=BF16)
    survey = SurveyPass(small, settings, None, tmp_path / "vectors.safetensors").run()
    return rank_allocator(small, survey, BF16, overhead=100, is_weighted=False)


def ranks(plan: Plan) -> dict[str, int | None]:
    return {item.name: item.rank for item in plan.items}


def sizes(*nbytes: int) -> SizeLimits:
    return SizeLimits(nbytes=nbytes, words=tuple(f"{one}B" for one in nbytes))


TWO = (FixedRank(linear=16, conv=8), FixedRank(linear=64, conv=2))


@pytest.mark.parametrize(
    ("rule", "names", "facts"),
    [
        (FixedRanks(ranks=TWO[:1]), ("",), {"rank_policy": "fixed", "rank": 16, "conv_rank": 8}),
        (FixedRanks(ranks=TWO, is_named=True), ("r16", "r64"), {"rank_policy": "fixed", "rank": 64, "conv_rank": 2}),
        (FixedRanks(ranks=TWO[:1], is_named=True), ("r16",), {"rank_policy": "fixed", "rank": 16, "conv_rank": 8}),
        (SizeLimits(nbytes=(1,), words=("200 MB",)), ("",), {"rank_policy": "max_size", "max_size": "200 MB"}),
        (
            SizeLimits(nbytes=(1, 2), words=("200 MB", "1.5GB")),
            ("200MB", "1.5GB"),
            {"rank_policy": "max_size", "max_size": "1.5GB"},
        ),
        (ErrorLimit(option="max_error", value=0.3), ("",), {"rank_policy": "max_error", "max_error": 0.3}),
        (PsnrFloor(option="min_psnr", value=40.0), ("",), {"rank_policy": "min_psnr", "min_psnr": 40.0}),
    ],
)
def test_a_rule_names_its_adapters_and_says_what_was_asked_for(
    rule: RankRule, names: tuple[str, ...], facts: dict[str, object]
) -> None:
    assert rule.names == names
    assert rule.facts(len(names) - 1) == facts


def test_fixed_ranks_are_surveyed_up_to_the_highest_of_each_kind(plan: Plan) -> None:
    capped = capped_plan(plan, FixedRanks(ranks=TWO), BF16)
    assert ranks(capped) == {name: 8 if name == "conv.weight" else bound and 64 for name, bound in BOUNDS.items()}


@pytest.mark.parametrize("kind", [ErrorLimit, PsnrFloor])
def test_a_limit_of_all_layers_together_stops_at_a_quarter_of_a_large_matrix(
    plan: Plan, kind: type[ErrorLimit | PsnrFloor]
) -> None:
    capped = capped_plan(plan, kind(option="o", value=0.5), BF16)
    assert ranks(capped) == BOUNDS | {"large.weight": 100, "middle.weight": 64}


@pytest.mark.parametrize("kind", [ModuleErrorLimit, EnergyShare])
def test_a_limit_of_each_layer_may_need_every_rank(plan: Plan, kind: type[ModuleErrorLimit | EnergyShare]) -> None:
    assert ranks(capped_plan(plan, kind(option="o", value=0.5), BF16)) == BOUNDS


def test_the_largest_size_says_how_far_a_layer_may_go(plan: Plan) -> None:
    thirty = 30 * PER_RANK
    capped = capped_plan(plan, sizes(PER_RANK, thirty), BF16)
    assert ranks(capped) == BOUNDS | {"large.weight": 120, "middle.weight": 120}
    assert ranks(capped_plan(plan, sizes(thirty), torch.float32)) == BOUNDS | {"large.weight": 64, "middle.weight": 64}


@settings(max_examples=20)  # each checks a whole plan
@given(nbytes=st.integers(1, 200 * PER_RANK))
def test_a_cap_by_size_is_four_times_the_uniform_rank_within_its_bounds(plan: Plan, nbytes: int) -> None:
    for item in capped_plan(plan, sizes(nbytes), BF16).items:
        if item.rank is not None:
            bound = rank_bound(item.shape)
            assert min(bound, 64) <= item.rank <= bound
            if 64 < item.rank < bound:
                assert item.rank == math.ceil(4 * nbytes / PER_RANK)


def test_a_choice_keeps_what_was_asked_for(allocator: RankAllocator) -> None:
    energy = allocator.energy_sq
    (whole,) = ErrorLimit(option="max_error", value=0.5).choices(allocator, energy)
    assert 0 < whole.error_sq <= 0.25 * energy
    assert whole == allocator.error(0.25 * energy)
    (each,) = ModuleErrorLimit(option="max_module_error", value=0.5).choices(allocator, energy)
    (share,) = EnergyShare(option="keep_energy", value=0.75).choices(allocator, energy)
    assert each == share == allocator.module_error(0.5)  # an error of 0.5 leaves a quarter of the energy
    assert FixedRanks(ranks=TWO).choices(allocator, energy) == [allocator.fixed(one) for one in TWO]
    room = allocator.fixed_bytes
    tight, wide = sizes(room + 500, room + 1500).choices(allocator, energy)
    assert room < tight.nbytes <= room + 500 < wide.nbytes <= room + 1500
    assert wide.error_sq < tight.error_sq


def test_only_running_finds_what_has_a_psnr() -> None:
    assert not hasattr(PsnrFloor(option="min_psnr", value=40.0), "choices")
