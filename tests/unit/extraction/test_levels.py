"""A survey in levels finds what a survey of all ranks finds where it matters, with fewer ranks."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lbm_lora.checkpoint import Checkpoint, open_checkpoint
from lbm_lora.extraction import Plan, plan_extraction
from lbm_lora.extraction.deltas import DeltaSettings
from lbm_lora.extraction.selection import surveyed
from lbm_lora.factorize import PACKED, Moment, Weights
from lbm_lora.naming import ModuleName, ParamName
from lbm_lora.progress import SILENT
from lbm_lora.ranks import Choice, OutputNorm, SizeLimits

Save = Callable[[str, Mapping[str, Tensor]], Path]
STEEP, FLAT, SMALL = ParamName("steep.weight"), ParamName("flat.weight"), ParamName("small.weight")


@pytest.fixture
def plan(save: Save) -> Plan:
    """One matrix with a few large ranks, one with many equal ones, one so small that all its ranks are found."""
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int, power: float) -> Tensor:
        left, right = (torch.linalg.qr(torch.randn(n, rows, generator=generator)).Q for n in (rows, columns))
        return left * torch.arange(1, rows + 1) ** -power @ right.mT

    tuned: dict[str, Tensor] = {STEEP: matrix(320, 400, 3.0), FLAT: matrix(400, 400, 0.7), SMALL: matrix(96, 200, 0.3)}
    states = [{name: torch.zeros_like(values) for name, values in tuned.items()}, tuned]
    base, after = (open_checkpoint(save(f"{n}.safetensors", state)) for n, state in enumerate(states))
    return plan_extraction(base.component(), after.component())


@pytest.mark.parametrize(("dtype", "nbytes"), [(PACKED, 60_000), (torch.float16, 190_000)])
def test_the_choice_is_that_of_a_complete_survey(
    plan: Plan, tmp_path: Path, dtype: torch.dtype, nbytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(1)
    moments: dict[ModuleName, Weights] = {}
    for module, (rows, columns) in plan.shapes().items():
        sides = [torch.rand(size, generator=generator) + 0.5 for size in (rows, columns)]
        moments[module] = Weights(inputs=Moment(diagonal=sides[1]), outputs=Moment(diagonal=sides[0]))
    norm = OutputNorm(name="", weights_of=moments.__getitem__, energy=1.0)
    rule = SizeLimits(nbytes=(nbytes,), words=("",))
    found: list[Choice] = []
    highest: list[int] = []
    for is_complete in (False, True):
        if is_complete:
            monkeypatch.setattr("lbm_lora.extraction.selection.first_level", lambda plan: plan)
        with surveyed(
            plan, rule, DeltaSettings(dtype=dtype), norm, run_settings=[{}], beside=tmp_path / "l", progress=SILENT
        ) as selection:
            found.append(selection.choose(rule)[0].choice)
            highest.append(max(_values(file, STEEP) for file in selection.vectors))
            outcomes = [outcome for (outcome,) in selection.carried_out([found[-1]])]
            assert {one.row.name: one.row.rank for one in outcomes} == found[-1].ranks
    assert found[0].error_sq == pytest.approx(found[1].error_sq, rel=2e-2)
    assert highest[0] < highest[1]
    assert (found[0].highest_rank(FLAT) or 0) > 64, "the first level is enough"


def _values(file: Checkpoint, name: ParamName) -> int:
    """Return the ranks of a delta that a file of vectors has."""
    key = f"{name}.values"
    return file.specs[key].shape[0] if key in file.specs else 0
