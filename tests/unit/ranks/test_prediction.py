"""Predictions from a survey, and how measured errors correct them."""

import math
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.extraction import DeltaSettings, Plan, plan_extraction
from lbm_lora.extraction.selection import RankSelection, surveyed
from lbm_lora.factorize import FixedRank
from lbm_lora.progress import SILENT
from lbm_lora.ranks import ErrorLimit, RankRule, TrialErrors


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


def test_the_scratch_file_goes(plan: Plan, tmp_path: Path) -> None:
    with opened(plan, HALF, tmp_path):
        assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    assert list(tmp_path.iterdir()) == []
