"""How ranks are chosen: sizes are kept, errors are reached, and none of it by chance."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lbm_lora.adapter import save_adapter
from lbm_lora.adapter.module import Adapter
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import InputError
from lbm_lora.extraction import DeltaSettings, Plan, Survey, SurveyedPass, SurveyPass, plan_extraction, rank_allocator
from lbm_lora.factorize import FixedRank, rank_bound
from lbm_lora.naming import ParamName
from lbm_lora.ranks import Choice, RankAllocator
from lbm_lora.ranks.allocate import megabytes
from smallnet import small_state

Save = Callable[[str, Mapping[str, Tensor]], Path]
SETTINGS = DeltaSettings(dtype=torch.float32)
OVERHEAD = 100


@pytest.fixture
def plan(save: Save) -> Plan:
    base, tuned = (open_checkpoint(save(f"{seed}.safetensors", small_state(seed))) for seed in (1, 2))
    return plan_extraction(base.component(), tuned.component(), FixedRank(linear=9999, conv=9999))


@pytest.fixture
def survey(plan: Plan, tmp_path: Path) -> Survey:
    return SurveyPass(plan, SETTINGS, None, tmp_path / "vectors.safetensors").run()


@pytest.fixture
def allocator(plan: Plan, survey: Survey) -> RankAllocator:
    return rank_allocator(plan, survey, SETTINGS.dtype, overhead=OVERHEAD, is_weighted=False)


def adapter_of(plan: Plan, folder: Path, ranks: Mapping[ParamName, int | None]) -> Adapter:
    chosen = Choice(ranks=dict(ranks), nbytes=0, error_sq=0.0)
    with open_checkpoint(folder / "vectors.safetensors") as scratch:
        outcomes = [one for (one,) in SurveyedPass(plan, SETTINGS, None, [chosen], [scratch])]
    modules = {one.module.name: one.module for one in outcomes if one.module is not None}
    return Adapter(modules, {one.row.name: one.dense for one in outcomes if one.dense is not None})


def error_of(plan: Plan, adapter: Adapter) -> float:
    """The squared error of all floating point deltas."""
    total = 0.0
    for item in plan.items:
        if plan.pairing.tuned.specs[item.name].is_floating:
            delta, _ = plan.pairing.read_delta(item.name)
            known = adapter.delta(item.name)
            total += float((delta if known is None else delta - known).square().sum())
    return total


def test_fixed_ranks_are_those_of_the_plan(plan: Plan, allocator: RankAllocator) -> None:
    ranks = FixedRank(linear=3, conv=2)
    assert allocator.fixed(ranks).ranks == {item.name: ranks.rank_of(item.shape) for item in plan.items if item.rank}


@pytest.mark.parametrize("ranks", [FixedRank(linear=2, conv=1), FixedRank(linear=4, conv=4)])
def test_the_error_and_the_size_that_are_said_are_those_of_the_file(
    plan: Plan, allocator: RankAllocator, tmp_path: Path, ranks: FixedRank
) -> None:
    choice = allocator.fixed(ranks)
    adapter = adapter_of(plan, tmp_path, choice.ranks)
    assert choice.error_sq == pytest.approx(error_of(plan, adapter), rel=1e-3)
    save_adapter(adapter, tmp_path / "lora.safetensors")
    room = 8192  # that the writer keeps for later metadata
    assert (tmp_path / "lora.safetensors").stat().st_size == pytest.approx(choice.nbytes + room, abs=1000)


def test_a_size_is_kept_and_a_larger_one_is_no_worse(allocator: RankAllocator) -> None:
    sizes = [allocator.fixed_bytes + more for more in (1, 400, 900, 1500, 2500, 100_000)]
    choices = allocator.within(sizes)
    assert all(choice.nbytes <= size for choice, size in zip(choices, sizes, strict=True))
    errors = [choice.error_sq for choice in choices]
    assert errors == sorted(errors, reverse=True)
    assert set(choices[0].ranks.values()) == {0}  # no room for any matrix
    assert choices[-1].error_sq == pytest.approx(0, abs=1e-6 * allocator.energy_sq)


def test_at_the_size_of_fixed_ranks_chosen_ranks_are_no_worse(allocator: RankAllocator) -> None:
    for rank in (1, 2, 3):
        fixed = allocator.fixed(FixedRank(linear=rank, conv=rank))
        (chosen,) = allocator.within([fixed.nbytes])
        assert chosen.error_sq <= fixed.error_sq * (1 + 1e-9)


@pytest.mark.parametrize("share", [0.5, 0.2, 0.05])
def test_an_error_is_reached_with_few_bytes(allocator: RankAllocator, share: float) -> None:
    choice = allocator.error(share**2 * allocator.energy_sq)
    assert choice.error_sq <= share**2 * allocator.energy_sq * (1 + 1e-9)
    (smaller,) = allocator.within([choice.nbytes - 200])
    assert smaller.error_sq > share**2 * allocator.energy_sq


@pytest.mark.parametrize("value", [0.6, 0.3, 0.01])
def test_each_module_for_itself(survey: Survey, allocator: RankAllocator, value: float) -> None:
    by_error, by_energy = allocator.module_error(value), allocator.energy(1 - value**2)
    assert by_error.ranks == by_energy.ranks
    for one in survey.spectra:
        rank = by_error.ranks[one.name]
        assert rank is not None
        total = float(one.squares.sum())
        assert float(one.squares[rank:].sum()) <= value**2 * total
        assert rank == 0 or float(one.squares[rank - 1 :].sum()) > value**2 * total
        assert rank <= rank_bound(one.shape)


def test_a_size_without_room_says_what_is_needed(allocator: RankAllocator) -> None:
    with pytest.raises(InputError) as caught:
        allocator.within([allocator.fixed_bytes])
    assert str(caught.value) == (
        f"max_size {megabytes(allocator.fixed_bytes)}: biases, norms and the header alone take "
        f"{megabytes(allocator.fixed_bytes)}. Allow more, or leave tensors out: exclude, dense=False."
    )


def test_an_error_that_no_ranks_reach(plan: Plan, survey: Survey) -> None:
    lost = Survey(survey.spectra, [], survey.others.__class__(delta_sq=10.0, error_sq=10.0))
    allocator = rank_allocator(plan, lost, SETTINGS.dtype, overhead=OVERHEAD, is_weighted=False)
    with pytest.raises(InputError, match=r"^no ranks reach an error this small: the lowest squared error is 10, 5 was"):
        allocator.error(5.0)


def test_in_an_outputs_norm_the_other_tensors_count_nothing(plan: Plan, survey: Survey) -> None:
    allocator = rank_allocator(plan, survey, SETTINGS.dtype, overhead=OVERHEAD, is_weighted=True)
    whole = sum(float(one.squares.sum()) + one.rest for one in survey.spectra)
    assert allocator.energy_sq == pytest.approx(whole)
    assert allocator.fixed(FixedRank(linear=9999, conv=9999)).error_sq == pytest.approx(0, abs=1e-9)


def test_sizes_are_shown_in_fitting_units() -> None:
    assert (megabytes(999_000), megabytes(1_234_567)) == ("999.0 kB", "1.2 MB")
