"""Two passes: what the first finds, and that the second truncates it at any rank."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lbm_lora.adapter import Adapter, Ledger, Outcome
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.extraction import DeltaSettings, Plan, SurveyedPass, SurveyPass, plan_extraction
from lbm_lora.extraction.survey import Survey
from lbm_lora.factorize import FixedRank, Measure, Moment, Weights, to_matrix
from lbm_lora.naming import ModuleName, ParamName, module_of
from lbm_lora.ranks import Choice, OutputNorm, RankAllocator, WeightsOf, unweighted
from smallnet import small_state

Save = Callable[[str, Mapping[str, Tensor]], Path]
FULL = FixedRank(linear=9999, conv=9999)
FP32 = DeltaSettings(dtype=torch.float32)


@pytest.fixture
def plan(save: Save) -> Plan:
    """Of two checkpoints, every matrix at its full rank."""
    base, tuned = (open_checkpoint(save(f"{seed}.safetensors", small_state(seed))) for seed in (1, 2))
    return plan_extraction(base.component(), tuned.component(), FULL)


def norm_of(weights_of: WeightsOf) -> OutputNorm | None:
    return None if weights_of is unweighted else OutputNorm(name="", weights_of=weights_of, energy=1.0)


def surveyed(plan: Plan, folder: Path, weights_of: WeightsOf = unweighted, settings: DeltaSettings = FP32) -> Survey:
    return SurveyPass(plan, settings, norm_of(weights_of), folder / "vectors.safetensors").run()


def emitted(
    plan: Plan,
    folder: Path,
    choices: Mapping[ParamName, int | None],
    weights_of: WeightsOf = unweighted,
    settings: DeltaSettings = FP32,
) -> tuple[Adapter, Ledger]:
    chosen = Choice(ranks=dict(choices), nbytes=0, error_sq=0.0)
    with open_checkpoint(folder / "vectors.safetensors") as scratch:
        outcomes = [outcome for (outcome,) in SurveyedPass(plan, settings, norm_of(weights_of), [chosen], [scratch])]
    return _adapter(outcomes), Ledger(tuple(outcome.row for outcome in outcomes))


def _adapter(outcomes: list[Outcome]) -> Adapter:
    modules = {outcome.module.name: outcome.module for outcome in outcomes if outcome.module is not None}
    return Adapter(modules, {one.row.name: one.dense for one in outcomes if one.dense is not None})


def weights(plan: Plan) -> dict[ModuleName, Weights]:
    """Random moments for every matrix; a conv's inputs have one for all positions of its kernel."""
    generator = torch.Generator().manual_seed(0)

    def moment(size: int, repeat: int = 1) -> Moment:
        rows = torch.randn(3 * size, size, generator=generator) * torch.logspace(0, -2, size)
        return Moment(dense=rows.mT @ rows / len(rows), repeat=repeat)

    found: dict[ModuleName, Weights] = {}
    for name, shape in plan.shapes().items():
        repeat = shape[2] * shape[3] if len(shape) == 4 else 1
        found[name] = Weights(inputs=moment(shape[1], repeat), outputs=moment(shape[0]), scale=2.5)
    return found


def test_what_a_rank_is_said_to_leave_it_leaves(plan: Plan, tmp_path: Path) -> None:
    """In the weighted norm, for every rank of every matrix, convs included."""
    of = weights(plan)
    found = surveyed(plan, tmp_path, of.__getitem__)
    for rank in (1, 2, 4):
        choices = {one.name: min(rank, len(one.squares)) for one in found.spectra}
        adapter, _ = emitted(plan, tmp_path, choices, of.__getitem__)
        for one in found.spectra:
            module = adapter.module_at(one.name)
            assert module is not None
            error = to_matrix(plan.pairing.read_delta(one.name)[0] - module.delta())
            whitening = of[module.name].whitening()
            left = float(whitening(error).double().square().sum())
            said = one.rest + float(one.squares[module.rank :].sum())
            assert left == pytest.approx(said, rel=1e-3, abs=1e-5 * float(one.squares.sum()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_rounding_is_foreseen(plan: Plan, tmp_path: Path, dtype: torch.dtype) -> None:
    """In the weighted norm. The refit of `up` takes a part of it back, which is not foreseen."""
    of = weights(plan)
    said = left = 0.0
    for settings in (FP32, DeltaSettings(dtype=dtype)):
        found = surveyed(plan, tmp_path, of.__getitem__, settings)
        choices: dict[ParamName, int | None] = {one.name: min(2, len(one.squares)) for one in found.spectra}
        adapter, _ = emitted(plan, tmp_path, choices, of.__getitem__, settings)
        sign = -1 if settings is FP32 else 1
        for one in found.spectra:
            module = adapter.module_at(one.name)
            assert module is not None
            error = to_matrix(plan.pairing.read_delta(one.name)[0] - module.delta())
            left += sign * float(of[module.name].whitening()(error).double().square().sum())
            said += float(one.rounding[:2].sum())
    assert 0.3 < left / said < 1.5


def test_ranks_below_the_rounding_of_a_bf16_checkpoint_are_not_worth_their_bytes(save: Save, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(96, 128, generator=generator).bfloat16().float()
    tuned = base + 3 * torch.outer(torch.randn(96, generator=generator), torch.randn(128, generator=generator)) / 100
    states = [{"a.weight": base.bfloat16()}, {"a.weight": tuned.bfloat16()}]
    paths = [save(f"{index}.safetensors", state) for index, state in enumerate(states)]
    components = [open_checkpoint(path).component() for path in paths]
    plan = plan_extraction(components[0], components[1], FULL)
    (one,) = surveyed(plan, tmp_path).spectra
    assert one.worth <= 3
    assert len(one.squares) == 96


def test_the_error_of_any_size_counts_rounding(plan: Plan, tmp_path: Path) -> None:
    """Of large files it is most of the error. The refit of `up` takes some of the factors' rounding back."""
    of, settings = weights(plan), DeltaSettings(dtype=torch.bfloat16)
    found = surveyed(plan, tmp_path, of.__getitem__, settings)
    allocator = RankAllocator(
        found.spectra, settings.dtype, prefix="", dense=plan.dense(), overhead=100, others=Measure()
    )
    for size in (allocator.fixed_bytes + 600, allocator.fixed_bytes + 1200, 10**9):
        (choice,) = allocator.within([size])
        adapter, _ = emitted(plan, tmp_path, choice.ranks, of.__getitem__, settings)
        left = 0.0
        for name in choice.ranks:
            delta, stored = plan.pairing.read_delta(name)[0], adapter.delta(name)
            error = to_matrix(delta if stored is None else delta - stored.float())
            left += float(of[module_of(name)].whitening()(error).double().square().sum())
        assert 0.5 < left / choice.error_sq < 1.5
    assert None in choice.ranks.values()


def test_a_delta_that_leaves_the_range_of_fp16_is_not_stored_whole(save: Save, tmp_path: Path) -> None:
    states = [{"a.weight": torch.zeros(8, 8)}, {"a.weight": 1e6 * torch.eye(8)}]
    base, tuned = (open_checkpoint(save(f"{n}.safetensors", state)).component() for n, state in enumerate(states))
    plan = plan_extraction(base, tuned, FixedRank(linear=8, conv=8))
    survey = surveyed(plan, tmp_path, settings=DeltaSettings(dtype=torch.float16))
    assert survey.spectra[0].dense == float("inf")
