"""A survey in levels finds what a survey of all ranks finds where it matters, with fewer ranks."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.extraction import Plan, plan_extraction
from lbm_lora.extraction.deltas import DeltaSettings
from lbm_lora.extraction.levels import first_level, more_ranks
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


def caps(plan: Plan) -> dict[str, int]:
    return {item.name: item.rank or 0 for item in plan.items}


def test_the_first_level_has_a_quarter_of_the_ranks_but_all_of_small_matrices(plan: Plan) -> None:
    highest = plan.with_caps({STEEP: 320, FLAT: 200, SMALL: 96})
    assert caps(first_level(highest)) == {STEEP: 80, FLAT: 64, SMALL: 96}


def test_deltas_that_use_their_ranks_get_twice_as_many_up_to_their_highest(plan: Plan) -> None:
    highest = plan.with_caps({STEEP: 320, FLAT: 100, SMALL: 96})
    known = first_level(highest)
    ranks: dict[ParamName, int | None] = {STEEP: 60, FLAT: 49, SMALL: 96}
    assert more_ranks(highest, known, [Choice(ranks=ranks, nbytes=0, error_sq=0.0)]) == {FLAT: 100}
    few = {STEEP: (8,) * 20 + (0,) * 40 + (2,), FLAT: (4,) * 10, SMALL: ()}
    packed = Choice(ranks={STEEP: 21, FLAT: 10, SMALL: 0}, nbytes=0, error_sq=0.0, widths=few)
    assert more_ranks(highest, known, [packed]) == {STEEP: 160}


def test_a_delta_that_is_stored_dense_gets_more_ranks_since_they_may_replace_it(plan: Plan) -> None:
    highest = plan.with_caps({STEEP: 320, FLAT: 320, SMALL: 96})
    dense = Choice(ranks={STEEP: None, FLAT: 1, SMALL: None}, nbytes=0, error_sq=0.0)
    assert more_ranks(highest, first_level(highest), [dense]) == {STEEP: 160}


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
            highest.append(max(_values(path, STEEP) for path in selection.vectors))
            with selection.carried_out([found[-1]]) as second:
                outcomes = [outcome for (outcome,) in second]
            assert {one.row.name: one.row.rank for one in outcomes} == found[-1].ranks
    assert found[0].error_sq == pytest.approx(found[1].error_sq, rel=2e-2)
    assert highest[0] < highest[1]
    assert (found[0].highest_rank(FLAT) or 0) > 64, "the first level is enough"


def _values(path: Path, name: ParamName) -> int:
    """Return the ranks of a delta that a file of vectors has."""
    file, key = open_checkpoint(path), f"{name}.values"
    return file.specs[key].shape[0] if key in file.specs else 0
