"""Predictions from a survey, and how measured errors correct them."""

import math
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.extraction import DeltaSettings, Plan, RankSelection, plan_extraction, surveyed
from lbm_lora.factorize import FixedRank, rank_bound
from lbm_lora.progress import SILENT
from lbm_lora.ranks import FixedRanks, RankRule, TrialErrors
from lbm_lora.ranks.rules import EnergyShare, ErrorLimit, PsnrFloor, SizeLimits


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    from safetensors.torch import save_file

    folder, draw = tmp_path_factory.mktemp("pair"), torch.Generator().manual_seed(0)
    shapes = {"a.weight": (300, 260), "b.weight": (20, 30), "c.weight": (6, 5, 3, 3), "b.bias": (20,)}
    base = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    tuned = {name: value + 0.1 * torch.randn(value.shape, generator=draw) for name, value in base.items()}
    for name, tensors in (("base", base), ("tuned", tuned)):
        save_file(tensors, folder / f"{name}.safetensors")
    components = [open_checkpoint(folder / f"{name}.safetensors").component() for name in ("base", "tuned")]
    return plan_extraction(components[0], components[1], FixedRank())


HALF = ErrorLimit(option="max_error", value=0.5)


def opened(plan: Plan, rule: RankRule, folder: Path):
    settings = DeltaSettings(dtype=torch.float32)
    beside = folder / "l.safetensors"
    return surveyed(plan, rule, settings, None, run_settings=[{}], beside=beside, progress=SILENT)


@pytest.fixture
def selection(plan: Plan, tmp_path: Path) -> Generator[RankSelection]:
    with opened(plan, HALF, tmp_path) as found:
        yield found


def errors(typical: float) -> TrialErrors:
    return TrialErrors(
        typical=typical,
        low=typical / 2,
        high=3 * typical,
        shifted={"content": 4 * typical, "larger": 5 * typical},
        shifted_within={"content": (2 * typical, 8 * typical), "larger": (typical, 25 * typical)},
    )


def test_what_was_measured_corrects_what_is_predicted(selection: RankSelection) -> None:
    small, middle, large = selection.allocator.within([20_000, 90_000, 300_000])
    before = selection.predictor.prediction(middle)
    assert before.error == before.foreseen == selection.predictor.foreseen(middle)
    assert before.measured is None
    assert (before.low, before.high, before.shifted) == (None, None, {})
    selection.predictor.learn(small, errors(2 * selection.predictor.foreseen(small)))
    assert selection.predictor.prediction(middle).error == pytest.approx(2 * before.foreseen)
    selection.predictor.learn(large, errors(8 * selection.predictor.foreseen(large)))
    after = selection.predictor.prediction(middle)
    places = [math.log(selection.predictor.foreseen(choice)) for choice in (small, middle, large)]
    share = (places[1] - places[0]) / (places[2] - places[0])
    assert after.error == pytest.approx(before.foreseen * 2 * 4**share)
    assert (after.foreseen, after.measured) == (before.foreseen, None)
    assert (after.low, after.high) == pytest.approx((after.error / 2, 3 * after.error))
    assert after.shifted == pytest.approx({"content": 4 * after.error, "larger": 5 * after.error})
    assert after.shifted_within["larger"] == pytest.approx((after.error, 25 * after.error))
    assert selection.predictor.prediction(large).measured == 8 * selection.predictor.foreseen(large)
    assert selection.predictor.prediction(large).error == pytest.approx(8 * selection.predictor.foreseen(large))


def test_a_table_goes_from_small_and_bad_to_large_and_good(selection: RankSelection) -> None:
    (choice,) = selection.allocator.within([90_000])
    table = selection.predictor.table(choice)
    assert choice.nbytes in [one.nbytes for one in table]
    assert len(table) > 4
    assert [one.nbytes for one in table] == sorted(one.nbytes for one in table)
    assert [one.error for one in table] == sorted((one.error for one in table), reverse=True)
    assert max(one.nbytes for one in table) <= 3 * 90_000


def test_nothing_is_learned_from_nothing(selection: RankSelection) -> None:
    (choice,) = selection.allocator.within([90_000])
    selection.predictor.learn(choice, None)
    assert selection.predictor.prediction(choice).error == selection.predictor.foreseen(choice)


def test_proposals_are_files_with_so_many_decibels(selection: RankSelection) -> None:
    for decibel in (0.5, 2.0, 3.0):
        proposal = selection.predictor.propose(decibel)
        assert proposal is not None
        assert proposal.foreseen >= decibel - 1e-6
        assert 10 ** (-proposal.foreseen / 20) == pytest.approx(selection.predictor.foreseen(proposal.found), abs=1e-8)
        assert proposal.nbytes == proposal.found.nbytes
    best = selection.predictor.propose(math.inf)
    assert best is not None
    assert selection.predictor.propose(1e4) is None or best.foreseen == 180.0
    assert set(best.found.ranks.values()) <= {None, *range(1, 301)}


@pytest.mark.parametrize(
    ("rule", "highest"),
    [
        (EnergyShare(option="keep_energy", value=0.9), {"a.weight": 260, "b.weight": 20, "c.weight": 6}),
        (PsnrFloor(option="min_psnr", value=40.0), {"a.weight": 65, "b.weight": 20, "c.weight": 6}),
        (SizeLimits(nbytes=(5_000,), words=("5kB",)), {"a.weight": 64, "b.weight": 20, "c.weight": 6}),
        (FixedRanks(ranks=(FixedRank(linear=3, conv=2),)), {"a.weight": 3, "b.weight": 3, "c.weight": 2}),
    ],
)
def test_no_more_ranks_are_found_than_can_be_needed(
    plan: Plan, tmp_path: Path, rule: RankRule, highest: dict[str, int]
) -> None:
    with opened(plan, rule, tmp_path) as found:
        assert {item.name: item.rank for item in found.plan.items if item.rank} == highest
    assert all(rank <= rank_bound(item.shape) for item in plan.items if (rank := item.rank))


def test_the_scratch_file_goes(plan: Plan, tmp_path: Path) -> None:
    with opened(plan, HALF, tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".l.safetensors.0.part"]
    assert list(tmp_path.iterdir()) == []


def test_two_runs_on_one_output_have_files_of_their_own(plan: Plan, tmp_path: Path) -> None:
    with opened(plan, HALF, tmp_path) as first, opened(plan, HALF, tmp_path) as second:
        assert first.vectors != second.vectors
        assert all(path.exists() for path in first.vectors)
        assert all(path.exists() for path in second.vectors)
    assert list(tmp_path.iterdir()) == []
