"""Predictions from a survey, and how measured errors correct them."""

import math
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.extract import Plan, Settings, plan_extraction
from lbm_lora.factorize import FixedRank, rank_bound
from lbm_lora.progress import SILENT
from lbm_lora.workflows.choosing import Chosen, Policy
from lbm_lora.workflows.surveying import surveyed


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
    return plan_extraction(*components, FixedRank())


def opened(plan: Plan, policy: Policy, folder: Path):
    settings = Settings(dtype=torch.float32)
    return surveyed(plan, settings, policy, None, run_settings={}, beside=folder / "l.safetensors", progress=SILENT)


@pytest.fixture
def chosen(plan: Plan, tmp_path: Path) -> Generator[Chosen]:
    with opened(plan, Policy(error=0.5), tmp_path) as found:
        yield found


def test_what_was_measured_corrects_what_is_predicted(chosen: Chosen) -> None:
    small, middle, large = chosen.chooser.within([20_000, 90_000, 300_000])
    before = chosen.prediction(middle)
    assert before.error == before.foreseen == chosen.foreseen(middle)
    assert before.measured is None
    chosen.learn(small, 2 * chosen.foreseen(small))
    assert chosen.prediction(middle).error == pytest.approx(2 * before.foreseen)
    chosen.learn(large, 8 * chosen.foreseen(large))
    after = chosen.prediction(middle)
    places = [math.log(chosen.foreseen(choice)) for choice in (small, middle, large)]
    share = (places[1] - places[0]) / (places[2] - places[0])
    assert after.error == pytest.approx(before.foreseen * 2 * 4**share)
    assert (after.foreseen, after.measured) == (before.foreseen, None)
    assert chosen.prediction(large).measured == 8 * chosen.foreseen(large)
    assert chosen.prediction(large).error == pytest.approx(8 * chosen.foreseen(large))


def test_a_table_goes_from_small_and_bad_to_large_and_good(chosen: Chosen) -> None:
    table = chosen.table(90_000)
    assert len(table) > 4
    assert [one.nbytes for one in table] == sorted(one.nbytes for one in table)
    assert [one.error for one in table] == sorted((one.error for one in table), reverse=True)
    assert max(one.nbytes for one in table) <= 3 * 90_000


def test_nothing_is_learned_from_nothing(chosen: Chosen) -> None:
    (choice,) = chosen.chooser.within([90_000])
    chosen.learn(choice, None)
    assert chosen.prediction(choice).error == chosen.foreseen(choice)


def test_proposals_are_files_with_so_many_decibels(chosen: Chosen) -> None:
    for decibel in (0.5, 2.0, 3.0):
        proposal = chosen.propose(decibel)
        assert proposal is not None
        assert proposal.foreseen >= decibel - 1e-6
        assert 10 ** (-proposal.foreseen / 20) == pytest.approx(chosen.foreseen(proposal.found), abs=1e-8)
        assert proposal.nbytes == proposal.found.nbytes
    best = chosen.propose(math.inf)
    assert best is not None
    assert chosen.propose(1e4) is None or best.foreseen == 180.0
    assert set(best.found.ranks.values()) <= {None, *range(1, 301)}


@pytest.mark.parametrize(
    ("policy", "highest"),
    [
        (Policy(energy=0.9), {"a.weight": 260, "b.weight": 20, "c.weight": 6}),
        (Policy(psnr=40.0), {"a.weight": 65, "b.weight": 20, "c.weight": 6}),
        (Policy(sizes=(5_000,)), {"a.weight": 64, "b.weight": 20, "c.weight": 6}),
        (Policy(fixed=(FixedRank(linear=3, conv=2),)), {"a.weight": 3, "b.weight": 3, "c.weight": 2}),
    ],
)
def test_no_more_ranks_are_found_than_can_be_needed(
    plan: Plan, tmp_path: Path, policy: Policy, highest: dict[str, int]
) -> None:
    with opened(plan, policy, tmp_path) as found:
        assert {item.name: item.rank for item in found.plan.items if item.rank} == highest
    assert all(rank <= rank_bound(item.shape) for item in plan.items if (rank := item.rank))


def test_the_scratch_file_goes(plan: Plan, tmp_path: Path) -> None:
    with opened(plan, Policy(error=0.5), tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".l.vectors.safetensors"]
    assert list(tmp_path.iterdir()) == []
