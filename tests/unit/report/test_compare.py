"""An adapter as stored, compared with the checkpoints it was made from."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lbm_lora.adapter import Adapter, LoraModule, Status, load_adapter, save_adapter
from lbm_lora.checkpoint import Pairing, open_checkpoint, pair
from lbm_lora.errors import PairingError
from lbm_lora.factorize import Measure
from lbm_lora.naming import ModuleName, ParamName
from lbm_lora.report import compare_weights, weight_report
from smallnet import extract_files, small_state

Save = Callable[[str, Mapping[str, Tensor]], Path]


@pytest.fixture
def pairing(save: Save) -> Callable[..., Pairing]:
    def build(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> Pairing:
        paths = save("base.safetensors", base), save("tuned.safetensors", tuned)
        first, second = (open_checkpoint(path).component() for path in paths)
        return pair(first, second)

    return build


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prefix", ["", "denoiser."])
def test_the_ledger_of_the_file_is_the_ledger_of_its_extraction(
    save: Save, pairing: Callable[..., Pairing], tmp_path: Path, prefix: str, dtype: torch.dtype
) -> None:
    base, tuned = small_state(1, prefix), small_state(2, prefix)
    tuned[f"{prefix}norm.bias"] = base[f"{prefix}norm.bias"]
    both = pairing(base, tuned)
    extracted = extract_files(
        tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", exclude=("head",), dtype=dtype
    )
    save_adapter(extracted.adapter, tmp_path / "lora.safetensors")
    found = compare_weights(both, load_adapter(tmp_path / "lora.safetensors"))
    assert len(found) == len(base)
    for row, expected in zip(found, extracted.ledger, strict=True):
        assert (row.name, row.status, row.shape, row.rank) == (
            expected.name,
            expected.status,
            expected.shape,
            expected.rank,
        )
        assert asdict(row.measure) == pytest.approx(asdict(expected.measure), rel=1e-5, abs=1e-12)
    reasons = {str(row.name): row.reason for row in found}
    assert reasons["head.0.weight"] == "not in the adapter"
    assert reasons["bn1.num_batches_tracked"] == "not a floating point tensor"
    assert reasons["norm.bias"] == "equal in base and tuned"
    assert (reasons["stem.weight"], reasons["bn1.bias"]) == ("conv", "stored dense")


def test_numbers_by_hand(pairing: Callable[..., Pairing]) -> None:
    base = {"a.weight": torch.zeros(2, 2), "b.weight": torch.zeros(2), "c.bias": torch.zeros(2)}
    tuned = {
        "a.weight": torch.tensor([[3.0, 0], [0, 4]]),
        "b.weight": torch.tensor([1.0, 0]),
        "c.bias": torch.tensor([0, 2.0]),
    }
    up, down = torch.tensor([[1.0], [0.0]]), torch.tensor([[3.0, 0.0]])
    module = LoraModule(ModuleName("a"), down, up, 1.0)
    adapter = Adapter({module.name: module}, {ParamName("b.weight"): torch.tensor([1.0, 0.5])})
    ledger = compare_weights(pairing(base, tuned), adapter)
    rows = {row.name: row for row in ledger}
    assert rows[ParamName("a.weight")].status is Status.LORA
    assert rows[ParamName("a.weight")].rank == 1
    assert rows[ParamName("a.weight")].measure == Measure(
        numel=4, delta_sq=25.0, error_sq=16.0, delta_abs=7.0, error_abs=4.0
    )
    assert rows[ParamName("b.weight")].status is Status.DENSE
    assert rows[ParamName("b.weight")].measure.error_sq == 0.25
    assert rows[ParamName("c.bias")].status is Status.EXCLUDED
    report = weight_report(ledger, base="b", tuned="t", adapter="a")
    assert report.relative_error == pytest.approx(((16 + 0.25 + 4) / 30) ** 0.5)
    assert report.left_out_share == pytest.approx(4 / 30)


def test_a_delta_of_a_tensor_that_did_not_change_is_an_error(pairing: Callable[..., Pairing]) -> None:
    same = {"a.bias": torch.ones(2)}
    ledger = compare_weights(pairing(same, same), Adapter({}, {ParamName("a.bias"): torch.ones(2)}))
    (row,) = ledger
    assert (row.status, row.measure.relative_error) == (Status.DENSE, float("inf"))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_adapter_with_broken_values_is_reported_as_useless(pairing: Callable[..., Pairing], value: float) -> None:
    base, tuned = {"a.bias": torch.zeros(2)}, {"a.bias": torch.ones(2)}
    adapter = Adapter({}, {ParamName("a.bias"): torch.tensor([1.0, value])})
    (row,) = compare_weights(pairing(base, tuned), adapter)
    assert row.measure.relative_error == float("inf")


def test_broken_checkpoints_are_refused(pairing: Callable[..., Pairing]) -> None:
    broken = pairing({"a.bias": torch.zeros(2)}, {"a.bias": torch.tensor([1.0, torch.nan])})
    with pytest.raises(PairingError, match="tuned values"):
        compare_weights(broken, Adapter({}, {}))


def test_progress_hears_of_every_tensor(pairing: Callable[..., Pairing]) -> None:
    calls: list[None] = []
    both = pairing(small_state(1), small_state(2))
    compare_weights(both, Adapter({}, {}), on_tensor=lambda: calls.append(None))
    assert len(calls) == len(both.pairs) == len(small_state(1))
