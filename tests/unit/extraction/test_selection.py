"""A surveyed plan: what was run is what is written."""

from collections.abc import Callable, Generator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.extraction import DeltaSettings, SurveyedPass, plan_extraction
from lbm_lora.extraction.selection import RankSelection, surveyed
from lbm_lora.factorize import FixedRank
from lbm_lora.progress import SILENT
from lbm_lora.ranks import Choice, FixedRanks
from smallnet import small_state

Save = Callable[[str, Mapping[str, Tensor]], Path]
RULE = FixedRanks(ranks=(FixedRank(linear=2, conv=1),))
FP32 = DeltaSettings(dtype=torch.float32)


@pytest.fixture
def selection(save: Save, tmp_path: Path) -> Generator[RankSelection]:
    base, tuned = (open_checkpoint(save(f"{seed}.safetensors", small_state(seed))) for seed in (1, 2))
    plan = plan_extraction(base.component(), tuned.component())
    with surveyed(plan, RULE, FP32, None, run_settings=[{}], beside=tmp_path / "l", progress=SILENT) as found:
        yield found


def choice_of(selection: RankSelection) -> Choice:
    return selection.choose(RULE)[0].choice


def test_a_choice_that_was_run_is_not_computed_again(selection: RankSelection) -> None:
    choice = choice_of(selection)
    computed = selection.carried_out([choice])
    expected = [outcome for (outcome,) in computed]
    with selection.deltas_of(choice) as deltas:
        run = dict(deltas)
    kept = selection.carried_out([choice])
    assert not isinstance(kept, SurveyedPass)
    outcomes = [outcome for (outcome,) in kept]
    assert len(kept) == len(expected)
    assert kept.fingerprints() == computed.fingerprints()
    assert isinstance(selection.carried_out([choice, choice]), SurveyedPass)
    assert [one.row for one in outcomes] == [one.row for one in expected]
    for one in outcomes:
        assert run[one.row.name] is (one.dense if one.module is None else one.module)
