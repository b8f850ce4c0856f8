"""How ranks are chosen: sizes are kept, errors are reached, and none of it by chance."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lbm_lora.adapter import save_adapter
from lbm_lora.adapter.module import Adapter
from lbm_lora.blocks import energy
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import InputError
from lbm_lora.extraction import DeltaSettings, Plan, SurveyedPass, SurveyPass, plan_extraction
from lbm_lora.extraction.survey import Survey
from lbm_lora.factorize import FixedRank, MomentAccumulator, Weights, weighted_svd
from lbm_lora.naming import ParamName
from lbm_lora.ranks import (
    Choice,
    RankAllocator,
    WidthAllocator,
    WidthSpectrum,
    dense_error,
    vector_spectrum,
    width_spectrum,
)
from lbm_lora.ranks.allocate import megabytes
from smallnet import small_state

Rand = Callable[..., Tensor]
Save = Callable[[str, Mapping[str, Tensor]], Path]
SETTINGS = DeltaSettings(dtype=torch.float32)


@pytest.fixture
def plan(save: Save) -> Plan:
    base, tuned = (open_checkpoint(save(f"{seed}.safetensors", small_state(seed))) for seed in (1, 2))
    return plan_extraction(base.component(), tuned.component(), FixedRank(linear=9999, conv=9999))


@pytest.fixture
def survey(plan: Plan, tmp_path: Path) -> Survey:
    return SurveyPass(plan, SETTINGS, None, tmp_path / "vectors.safetensors").run()


@pytest.fixture
def allocator(plan: Plan, survey: Survey) -> RankAllocator:
    return RankAllocator(
        survey.spectra, torch.float32, prefix="", dense=plan.dense(), overhead=100, others=survey.others
    )


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


def test_the_error_and_the_size_that_are_said_are_those_of_the_file(
    plan: Plan, allocator: RankAllocator, tmp_path: Path
) -> None:
    choice = allocator.fixed(FixedRank(linear=2, conv=1))
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


@pytest.mark.parametrize("share", [0.5, 0.05])
def test_an_error_is_reached_with_few_bytes(allocator: RankAllocator, share: float) -> None:
    choice = allocator.error(share**2 * allocator.energy_sq, allocator.energy_sq)
    assert choice.error_sq <= share**2 * allocator.energy_sq * (1 + 1e-9)
    (smaller,) = allocator.within([choice.nbytes - 200])
    assert smaller.error_sq > share**2 * allocator.energy_sq


def test_a_size_without_room_says_what_is_needed(allocator: RankAllocator) -> None:
    with pytest.raises(InputError) as caught:
        allocator.within([allocator.fixed_bytes])
    assert str(caught.value) == (
        f"max_size {megabytes(allocator.fixed_bytes)}: biases, norms and the header alone take "
        f"{megabytes(allocator.fixed_bytes)}. Allow more, or leave tensors out: exclude, dense=False."
    )


def spectra(count: int = 4) -> list[WidthSpectrum]:
    draw = torch.Generator().manual_seed(0)
    found: list[WidthSpectrum] = []
    for index in range(count):
        matrix = torch.randn(24, 40, generator=draw) * 10.0**-index
        svd = weighted_svd(matrix, 24, Weights().whitening(), seed=0)
        name = ParamName(f"blocks.{index}.weight")
        found.append(width_spectrum(name, (24, 40), matrix, svd, Weights(), Weights().whitening()))
        bias = torch.randn(24, generator=draw)
        found.append(vector_spectrum(ParamName(f"blocks.{index}.bias"), bias, None, is_needed=False))
    return found


def test_files_fill_their_size() -> None:
    allocator = WidthAllocator(spectra(), prefix="", overhead=500)
    errors: list[float] = []
    for size in (1000, 2000, 4000):
        (choice,) = allocator.within([size])
        assert 0.85 * size <= choice.nbytes <= size
        assert set(choice.widths) == {spectrum.name for spectrum in spectra()}
        errors.append(choice.error_sq)
    assert errors == sorted(errors, reverse=True)
    assert allocator.energy_sq > errors[0]


def test_a_size_below_everything_is_refused() -> None:
    with pytest.raises(InputError, match="the smallest file takes"):
        WidthAllocator(spectra(), prefix="", overhead=500).within([400])


@pytest.mark.parametrize("repeat", [1, 4])
def test_a_dense_deltas_rounding_costs_what_is_expected_of_independent_errors(repeat: int, rand: Rand) -> None:
    inputs, outputs = MomentAccumulator(64, repeat=repeat), MomentAccumulator(300)
    inputs.add(rand(90, 64) * torch.logspace(0, -2, 64))
    outputs.add(rand(400, 300) * torch.logspace(0, -1, 300))
    weights = Weights(inputs=inputs.result(), outputs=outputs.result(), ridge=1e-9, scale=3.0)
    matrix = rand(300, 64 * repeat)
    lost = matrix.bfloat16().float() - matrix
    expected = energy(weights.whitening()(lost))
    assert dense_error(matrix, weights, torch.bfloat16) == pytest.approx(expected, rel=0.05)
    assert dense_error(matrix, Weights(), torch.bfloat16) == pytest.approx(energy(lost), rel=1e-5)
