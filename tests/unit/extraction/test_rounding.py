"""That choices of ranks know what rounding to the stored dtype costs, of factors and of deltas stored whole."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import InputError
from lbm_lora.extraction import DeltaSettings, Plan, Survey, SurveyedPass, SurveyPass, plan_extraction, rank_allocator
from lbm_lora.factorize import FixedRank, Moment, Weights, to_matrix
from lbm_lora.naming import ParamName, module_of
from lbm_lora.ranks import Choice, OutputNorm, RankAllocator, WeightsOf
from smallnet import small_state

Save = Callable[[str, Mapping[str, Tensor]], Path]
BF16 = DeltaSettings(dtype=torch.bfloat16)
FP16 = DeltaSettings(dtype=torch.float16)


@pytest.fixture
def plan(save: Save) -> Plan:
    base, tuned = (open_checkpoint(save(f"{seed}.safetensors", small_state(seed))) for seed in (1, 2))
    return plan_extraction(base.component(), tuned.component(), FixedRank(linear=9999, conv=9999))


@pytest.fixture
def weights_of(plan: Plan) -> WeightsOf:
    draw = torch.Generator().manual_seed(0)

    def moment(size: int, repeat: int = 1) -> Moment:
        rows = torch.randn(3 * size, size, generator=draw)
        return Moment(dense=rows.mT @ rows / len(rows), repeat=repeat)

    found = {
        name: Weights(inputs=moment(shape[1], torch.Size(shape[2:]).numel()), outputs=moment(shape[0]), scale=3.0)
        for name, shape in plan.shapes().items()
    }
    return found.__getitem__


def norm_of(weights_of: WeightsOf) -> OutputNorm:
    return OutputNorm(name="", weights_of=weights_of, energy=1.0)


def take_survey(plan: Plan, weights_of: WeightsOf, settings: DeltaSettings, folder: Path) -> Survey:
    return SurveyPass(plan, settings, norm_of(weights_of), folder / "vectors.safetensors").run()


def allocator_of(plan: Plan, survey: Survey, settings: DeltaSettings) -> RankAllocator:
    return rank_allocator(plan, survey, settings.dtype, overhead=100, is_weighted=True)


def left(
    plan: Plan, weights_of: WeightsOf, settings: DeltaSettings, folder: Path, ranks: Mapping[ParamName, int | None]
) -> dict[ParamName, float]:
    """The squared error in the weighted norm of each delta that a file would have."""
    errors: dict[ParamName, float] = {}
    chosen = Choice(ranks=dict(ranks), nbytes=0, error_sq=0.0)
    with open_checkpoint(folder / "vectors.safetensors") as scratch:
        for (outcome,) in SurveyedPass(plan, settings, norm_of(weights_of), [chosen], [scratch]):
            name = outcome.row.name
            if name in ranks:
                delta, _ = plan.pairing.read_delta(name)
                stored = outcome.module.delta() if outcome.module is not None else outcome.dense
                error = to_matrix(delta if stored is None else delta - stored.float())
                errors[name] = float(weights_of(module_of(name)).whitening()(error).double().square().sum())
    return errors


@pytest.mark.parametrize("settings", [BF16, FP16])
def test_what_a_delta_stored_whole_leaves_is_known(
    plan: Plan, weights_of: WeightsOf, settings: DeltaSettings, tmp_path: Path
) -> None:
    survey = take_survey(plan, weights_of, settings, tmp_path)
    errors = left(plan, weights_of, settings, tmp_path, {found.name: None for found in survey.spectra})
    assert all(0 < found.dense < 10 * errors[found.name] for found in survey.spectra)
    # an expectation, as if the roundings of all elements were independent
    assert sum(found.dense for found in survey.spectra) == pytest.approx(sum(errors.values()), rel=0.3)


@pytest.mark.parametrize("settings", [BF16, FP16])
def test_the_error_of_any_size_counts_rounding(
    plan: Plan, weights_of: WeightsOf, settings: DeltaSettings, tmp_path: Path
) -> None:
    """Of large files it is most of the error. The refit of `up` takes some of the factors' rounding back."""
    allocator = allocator_of(plan, take_survey(plan, weights_of, settings, tmp_path), settings)
    whole = sum(1 for rank in allocator.within([10**9])[0].ranks.values() if rank is None)
    assert whole > 0
    for size in (allocator.fixed_bytes + 600, allocator.fixed_bytes + 1200, 10**9):
        (choice,) = allocator.within([size])
        found = sum(left(plan, weights_of, settings, tmp_path, choice.ranks).values())
        assert 0.5 < found / choice.error_sq < 1.5


def test_an_error_near_what_rounding_leaves_is_kept(plan: Plan, weights_of: WeightsOf, tmp_path: Path) -> None:
    allocator = allocator_of(plan, take_survey(plan, weights_of, BF16, tmp_path), BF16)
    (best,) = allocator.within([10**9])
    for above in (1.01, 1.5, 5.0, 100.0):
        choice = allocator.error(above * best.error_sq)
        assert choice.error_sq <= above * best.error_sq * (1 + 1e-9)
        assert choice.nbytes <= best.nbytes
    with pytest.raises(InputError, match=r"or more precision \(save_precision\)\.$"):
        allocator.error(0.5 * best.error_sq)


def test_a_delta_that_leaves_the_range_of_fp16_is_not_stored_whole(save: Save, tmp_path: Path) -> None:
    states = [{"a.weight": torch.zeros(8, 8)}, {"a.weight": 1e6 * torch.eye(8)}]
    paths = [save(f"{index}.safetensors", state) for index, state in enumerate(states)]
    base, tuned = (open_checkpoint(path).component() for path in paths)
    plan = plan_extraction(base, tuned, FixedRank(linear=8, conv=8))
    survey = take_survey(plan, lambda _: Weights(), FP16, tmp_path)
    assert survey.spectra[0].dense == float("inf")
    assert allocator_of(plan, survey, FP16).within([10**6])[0].ranks == {"a.weight": 8}
