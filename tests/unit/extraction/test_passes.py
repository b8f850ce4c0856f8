"""One pass over two checkpoints: what is stored, what the ledger says of it, and that the same input gives the same."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lbm_lora.adapter import Status
from lbm_lora.errors import InputError, PairingError
from lbm_lora.factorize import Measure
from lbm_lora.naming import ModuleName, ParamName
from smallnet import Extracted, extract_files, small_state, tensors_of

Save = Callable[[str, Mapping[str, Tensor]], Path]
Extract = Callable[..., Extracted]


@pytest.fixture
def extract(save: Save) -> Extract:
    """`extract(base, tuned, ...)`, of two states."""

    def run(
        base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], suffix: str = ".safetensors", **options: Any
    ) -> Extracted:
        return extract_files(save(f"base{suffix}", base), save(f"tuned{suffix}", tuned), **options)

    return run


def delta_of(extracted: Extracted, name: str) -> Tensor:
    delta = extracted.adapter.delta(ParamName(name))
    assert delta is not None
    return delta


@pytest.mark.parametrize(("suffix", "prefix"), [(".safetensors", ""), (".ckpt", "model.denoiser._orig_mod.")])
def test_the_ledger_accounts_for_every_tensor(extract: Extract, suffix: str, prefix: str) -> None:
    found = extract(small_state(1, prefix), small_state(2, prefix), suffix)
    assert {row.name for row in found.ledger} == set(small_state(1))
    assert len(found.ledger) == len(small_state(1))
    assert found.ledger.counts() == {"lora": 4, "dense": 8, "unchanged": 0, "excluded": 1}
    assert found.adapter.prefix == ("denoiser." if "denoiser." in prefix else "")
    assert set(found.adapter.params) == {row.name for row in found.ledger.of(Status.LORA, Status.DENSE)}
    assert found.row("bn1.num_batches_tracked").reason == "not a floating point tensor"
    assert (found.row("stem.weight").rank, found.row("stem.weight").reason) == (2, "conv")
    assert (found.row("head.0.weight").rank, found.row("head.0.weight").reason) == (4, "linear")
    assert (found.row("bn1.running_var").rank, found.row("bn1.running_var").reason) == (None, "1-dimensional")


def test_the_ledger_measures_the_adapter_as_stored(extract: Extract) -> None:
    base, tuned = small_state(1), small_state(2)
    found = extract(base, tuned)
    for row in found.ledger.of(Status.LORA, Status.DENSE):
        exact = tuned[row.name].double() - base[row.name].double()
        error = exact - delta_of(found, row.name).double()
        assert row.measure.delta_sq == pytest.approx(float(exact.square().sum()), rel=1e-6)
        assert row.measure.error_sq == pytest.approx(float(error.square().sum()), rel=1e-4)
        assert row.shape == tuple(exact.shape)


def test_what_is_left_out_counts_as_error(extract: Extract) -> None:
    base, tuned = small_state(1), small_state(2)
    whole = extract(base, tuned, rank=9999, conv_rank=9999, dtype=torch.float32)
    part = extract(base, tuned, rank=9999, conv_rank=9999, dtype=torch.float32, exclude=("head", "*.bias"))
    left_out = [name for name in tensors_of(base) if "head" in name or name.endswith(".bias")]
    assert {row.name for row in part.ledger.of(Status.EXCLUDED)} == {*left_out, "bn1.num_batches_tracked"}
    assert {row.reason for row in part.ledger.of(Status.EXCLUDED)} == {"in --exclude", "not a floating point tensor"}
    missing = sum(float((tuned[name].double() - base[name].double()).square().sum()) for name in left_out)
    assert part.ledger.total().delta_sq == pytest.approx(whole.ledger.total().delta_sq, rel=1e-12)
    assert part.ledger.total().error_sq == pytest.approx(missing, rel=1e-6)
    assert part.row("head.0.weight").measure.relative_error == 1


def test_a_counter_is_no_part_of_the_error(extract: Extract) -> None:
    """Its change of a million would drown every weight's."""
    base, tuned = small_state(1), small_state(2)
    tuned["bn1.num_batches_tracked"].fill_(1_000_000)
    found = extract(base, tuned, rank=9999, conv_rank=9999)
    assert found.row("bn1.num_batches_tracked").status is Status.EXCLUDED
    assert found.row("bn1.num_batches_tracked").measure == Measure()
    assert found.ledger.total().relative_error < 0.01


@pytest.mark.parametrize(("min_diff", "kept"), [(0.0078125, True), (0.00782, False)])
def test_min_diff_is_compared_with_the_largest_change(extract: Extract, min_diff: float, kept: bool) -> None:
    base, tuned = (
        {"a.weight": torch.zeros(4, 4), "b.bias": torch.zeros(2)},
        {"a.weight": torch.zeros(4, 4), "b.bias": torch.ones(2)},
    )
    tuned["a.weight"][1, 2] = -0.0078125
    found = extract(base, tuned, min_diff=min_diff)
    row = found.row("a.weight")
    assert row.status is (Status.LORA if kept else Status.EXCLUDED)
    assert row.reason == ("linear" if kept else "largest change below --min_diff 0.00782")
    assert row.measure.delta_sq == 0.0078125**2


def same(first: Extracted, second: Extracted) -> bool:
    """Whether both hold the same bytes, whatever their order."""
    one, other = ({name: delta_of(found, name) for name in found.adapter.params} for found in (first, second))
    return one.keys() == other.keys() and all(
        torch.equal(delta_of(second, name), delta_of(first, name)) for name in one
    )


def large(seed: int) -> dict[str, Tensor]:
    """Matrices that the randomized method takes, and small ones."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (200, 220), "b.weight": (200, 220), "c.weight": (16, 24), "c.bias": (16,)}
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}


def test_the_same_input_gives_the_same_bytes_in_any_order_and_company(extract: Extract) -> None:
    first = extract(large(1), large(2))
    assert same(first, extract(large(1), large(2)))
    flipped = [dict(reversed(large(seed).items())) for seed in (1, 2)]
    assert same(first, extract(*flipped, ".ckpt"))
    prefixed = [{f"denoiser.{name}": tensor for name, tensor in large(seed).items()} for seed in (1, 2)]
    assert same(first, extract(*prefixed))
    alone = extract(large(1), large(2), include=("b.weight",))
    assert torch.equal(alone.adapter.modules[ModuleName("b")].up, first.adapter.modules[ModuleName("b")].up)


@pytest.mark.parametrize(("side", "value"), [(0, torch.nan), (1, torch.inf)])
def test_values_that_are_not_finite_stop_the_extraction(extract: Extract, side: int, value: float) -> None:
    states = [small_state(1), small_state(2)]
    states[side]["norm.bias"][3] = value
    with pytest.raises(PairingError, match=r"^norm\.bias: 1 of 6 (base|tuned) values in .* are not finite\."):
        extract(*states)


@pytest.mark.parametrize(("side", "value"), [(0, torch.nan), (1, -torch.inf), (1, 3e38)])
def test_left_out_by_name_they_do_not_drown_the_rest(extract: Extract, side: int, value: float) -> None:
    states = [{name: tensor.bfloat16() for name, tensor in tensors_of(small_state(seed)).items()} for seed in (1, 2)]
    clean = extract(*states, exclude=("norm",)).ledger
    states[side]["norm.bias"][3] = value
    if value == 3e38:
        states[1 - side]["norm.bias"][3] = -value  # their difference overflows
    ledger = extract(*states, exclude=("norm",)).ledger
    others = [[row.measure for row in one if row.name != "norm.bias"] for one in (ledger, clean)]
    assert others[0] == others[1]
    damaged = next(row.measure for row in ledger if row.name == "norm.bias")
    assert 0 < damaged.delta_sq < 6
    assert damaged.error_sq == damaged.delta_sq
    if value != 3e38:
        assert ledger.total().noise_floor < 1


def test_tensors_of_one_side_and_of_other_shapes_stay_in_the_ledger(extract: Extract) -> None:
    base, tuned = small_state(1), small_state(2)
    base["gone.weight"], tuned["new.weight"] = torch.ones(2, 3), torch.ones(4, 5)
    tuned["head.2.weight"] = torch.ones(7, 16)
    found = extract(base, tuned, exclude=("gone", "new", "head.2"))
    assert len(found.ledger) == len(base) + 1
    for name, shape in (("gone.weight", (2, 3)), ("new.weight", (4, 5)), ("head.2.weight", (7, 16))):
        row = found.row(name)
        assert (row.status, row.reason, row.shape, row.measure) == (Status.EXCLUDED, "in --exclude", shape, Measure())


@pytest.mark.parametrize("name", ["a.weight", "a.bias"])
def test_a_change_that_does_not_fit_the_stored_dtype_names_the_tensor(extract: Extract, name: str) -> None:
    shape = (2, 2) if name == "a.weight" else (2,)
    with pytest.raises(InputError) as caught:
        extract({name: torch.zeros(shape)}, {name: torch.full(shape, 1e6)}, dtype=torch.float16, rank=2)
    assert str(caught.value) == (
        f"{name}: values up to 1e+06 exceed the range of float16. Store them in bf16: save_precision bf16."
    )
