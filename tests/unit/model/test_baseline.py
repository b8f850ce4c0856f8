"""How close a base is to a tuned checkpoint, and whether it can be the one that this was tuned from."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import PairingError
from lbm_lora.model.baseline import BaselineReport, compare_base
from standins import TINY, base_tensors, tuned_tensors


def compared(tmp_path: Path, base: dict[str, Tensor], tuned: dict[str, Tensor]) -> BaselineReport:
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors")
    with (
        open_checkpoint(tmp_path / "base.safetensors") as one,
        open_checkpoint(tmp_path / "tuned.safetensors") as other,
    ):
        return compare_base(one.component(), other.component())


def test_numbers_by_hand(tmp_path: Path) -> None:
    base = {"a.weight": torch.tensor([[3.0, 4.0], [0.0, 0.0]])}
    tuned = {"a.weight": torch.tensor([[3.0, 4.5], [0.0, -0.5]])}
    (found,) = compared(tmp_path, base, tuned).tensors
    assert (found.name, found.shape) == ("a.weight", (2, 2))
    assert found.mean_abs == 0.25
    assert found.max_abs == 0.5
    assert found.unchanged == 0.5
    assert found.relative == pytest.approx(math.sqrt(0.5) / 5)
    assert found.cosine == pytest.approx((9 + 18) / (5 * math.sqrt(9 + 20.25 + 0.25)))
    assert found.noise_floor == 0, "fp32 storage is taken as exact"


def test_the_noise_floor_of_bf16_storage(tmp_path: Path) -> None:
    # 1.5 lies in [1, 2): ulp 2^-7; 5 in [4, 8): ulp 2^-5. The deltas are 0.5 and 1.
    base = {"a.weight": torch.tensor([[1.0, 4.0]]).bfloat16()}
    tuned = {"a.weight": torch.tensor([[1.5, 5.0]]).bfloat16()}
    report = compared(tmp_path, base, tuned)
    expected = math.sqrt((2**-14 + 2**-10) / 12) / math.sqrt(0.25 + 1)
    assert report.tensors[0].noise_floor == pytest.approx(expected)
    assert report.noise_floor == pytest.approx(expected)


def test_a_rounded_checkpoint_moves_by_its_noise_floor(tmp_path: Path, generator: torch.Generator) -> None:
    """Where the whole delta is rounding, the noise floor is its norm."""
    base = {"a.weight": torch.randn(300, 300, generator=generator)}
    report = compared(tmp_path, base, {"a.weight": base["a.weight"].bfloat16()})
    assert report.noise_floor == pytest.approx(1.0, abs=0.02)


def test_a_base_compared_with_itself(tmp_path: Path) -> None:
    report = compared(tmp_path, base_tensors(TINY), base_tensors(TINY))
    assert report.unchanged == 1
    assert report.unchanged_tensors == len(report.tensors) == 496
    assert report.average_difference == report.maximum_difference == report.noise_floor == 0
    assert report.band == "EXCELLENT"
    assert report.can_be_base
    assert (
        report.verdict
        == "This can be the base that it was tuned from: its matrices moved by 0.00% of their norm (median)."
    )


def test_the_base_that_it_was_tuned_from(tmp_path: Path) -> None:
    report = compared(tmp_path, base_tensors(TINY, dtype=torch.bfloat16), tuned_tensors(TINY))
    assert report.matched == "496/496"
    assert report.band == "GOOD"
    assert report.unrelated == ()
    assert report.can_be_base
    assert 0.05 < report.median_relative < 0.3
    assert 0 < report.noise_floor < 0.1


def test_another_seed_is_not_the_base(tmp_path: Path) -> None:
    report = compared(tmp_path, base_tensors(TINY, seed=1), tuned_tensors(TINY))
    assert not report.can_be_base
    assert report.band == "WARNING"
    assert 1.3 < report.median_relative < 1.5
    assert report.verdict.startswith("This is not the base that it was tuned from: ")


def test_a_crop_of_the_wrong_columns_is_found(tmp_path: Path) -> None:
    base = base_tensors(TINY)
    wrong = [name for name in base if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]
    for name in wrong:
        base[name] = base[name].flip(1).contiguous()
    report = compared(tmp_path, base, tuned_tensors(TINY))
    assert {f"denoiser.{name}" for name in report.unrelated} == set(wrong)
    assert not report.can_be_base


def test_one_layer_started_anew_is_named_and_accepted(tmp_path: Path) -> None:
    base = base_tensors(TINY)
    base["denoiser.mid_block.resnets.0.conv1.weight"] = (
        base["denoiser.mid_block.resnets.0.conv1.weight"].flip(1).contiguous()
    )
    report = compared(tmp_path, base, tuned_tensors(TINY))
    assert report.can_be_base
    assert report.verdict.endswith("But 1 matrices are unrelated to it: mid_block.resnets.0.conv1.weight.")


def test_tensors_without_a_partner(tmp_path: Path) -> None:
    base, tuned = base_tensors(TINY), tuned_tensors(TINY)
    del base["denoiser.conv_out.bias"]
    tuned["denoiser.conv_in.weight"] = torch.zeros(16, 8, 3, 3)
    report = compared(tmp_path, base, tuned)
    assert report.unmatched == ("conv_in.weight", "conv_out.bias")
    assert report.matched == "494/496"
    assert report.verdict == "This is not the base: 2 tensors have no partner: conv_in.weight, conv_out.bias."


def test_nothing_in_common(tmp_path: Path) -> None:
    with pytest.raises(PairingError, match="have no tensor of equal name and shape in common"):
        compared(tmp_path, {"a": torch.zeros(1)}, {"b": torch.zeros(1)})


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    with pytest.raises(PairingError, match=r"holds values that are not finite: 1 tensors, a\."):
        compared(tmp_path, {"a": torch.zeros(2)}, {"a": torch.tensor([0.0, math.nan])})


def test_zero_tensors_have_no_direction(tmp_path: Path) -> None:
    zero, one = {"a.weight": torch.zeros(64, 64)}, {"a.weight": torch.ones(64, 64)}
    assert compared(tmp_path, zero, zero).tensors[0].cosine == 1
    moved = compared(tmp_path, zero, one).tensors[0]
    assert (moved.cosine, moved.relative) == (0, math.inf)
