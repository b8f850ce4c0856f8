"""How close a base is to a tuned checkpoint, and whether it can be the one that this was tuned from."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lbm_lora.bundled import TUNED
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import PairingError
from lbm_lora.model.baseline import BASE_MARK, BaselineReport, check_pair, compare_base
from lbm_lora.verbs.base import make_base
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


def test_the_base_that_it_was_tuned_from(tmp_path: Path) -> None:
    report = compared(tmp_path, base_tensors(TINY, dtype=torch.bfloat16), tuned_tensors(TINY))
    assert report.matched == "496/496"
    assert report.band == "GOOD"
    assert report.unrelated == ()
    assert report.can_be_base
    assert 0.05 < report.median_relative < 0.3
    assert 0 < report.noise_floor < 0.1


def test_a_matrix_that_grew_out_of_almost_nothing_is_not_unrelated(tmp_path: Path) -> None:
    """As on the bundled model: moved by 2.7 times its norm, with a cosine of 0.35."""
    base, tuned = base_tensors(TINY), tuned_tensors(TINY)
    name = "mid_block.attentions.0.proj_out.weight"
    base[f"denoiser.{name}"] = tuned[f"denoiser.{name}"].float() * 0.1
    base[f"denoiser.{name}"] += 0.27 * base[f"denoiser.{name}"].roll(7)
    report = compared(tmp_path, base, tuned)
    assert (report.unrelated, report.outgrown) == ((), (name,))
    assert report.can_be_base
    assert report.verdict.endswith(
        f"1 matrix moved by more than its own norm ({name}): expected where the base holds values near 0."
    )


def test_the_bundled_model_has_its_own_base(tmp_path: Path) -> None:
    """A check that cries on our own model says nothing."""
    made = make_base(tmp_path / "base.ckpt", config_path=TUNED / "config.yaml").base
    with open_checkpoint(made.safetensors) as base, open_checkpoint(TUNED / "model.safetensors") as tuned:
        report = compare_base(base.component(), tuned.component())
    assert report.can_be_base
    assert report.unrelated == ()
    assert len(report.outgrown) == 32
    assert report.band == "WARNING", "the documented band is of absolute values"
    assert report.band_meaning == (
        "The documented bands are absolute values made for SDXL: WARNING says that the fine-tune changed much, or that "
        "the model's weights are large, as those of narrow models are. It does not speak against the base."
    )


def saved(path: Path, *, iterations: int | None = None, mark: bool = False) -> Path:
    counter = {} if iterations is None else {"num_iterations": torch.tensor(float(iterations))}
    save_file({"denoiser.a.weight": torch.ones(2, 2), **counter}, path, {"initialization": BASE_MARK} if mark else None)
    return path


def checked(base: Path, tuned: Path) -> None:
    with open_checkpoint(base) as one, open_checkpoint(tuned) as other:
        check_pair(one, other)


def test_an_exact_base_in_the_place_of_tuned_is_refused(tmp_path: Path) -> None:
    tuned, base = saved(tmp_path / "t.safetensors"), saved(tmp_path / "b.safetensors", mark=True)
    checked(base, tuned)
    with pytest.raises(PairingError) as caught:
        checked(tuned, base)
    assert str(caught.value) == (
        f"{base} is marked as an exact base and {tuned} is not: the two are swapped. "
        f"Use base_model_path {base} tuned_model_path {tuned}."
    )


@pytest.mark.parametrize(
    ("base", "tuned", "said"), [(256, 0, True), (256, 256, False), (0, 3, False), (256, None, True)]
)
def test_a_base_that_was_trained_longer_gives_a_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, base: int, tuned: int | None, said: bool
) -> None:
    one = saved(tmp_path / "a.safetensors", iterations=base)
    other = saved(tmp_path / "b.safetensors", iterations=tuned)
    checked(one, other)
    text = f"{one} counts {base} training iterations, {other} none. Are base and tuned swapped?"
    assert [str(warning.message) for warning in recwarn] == [text] * said
