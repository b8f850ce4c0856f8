"""What will become of each tensor, from names and shapes alone."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import PairingError
from lbm_lora.extraction import COVERAGES, Action, Plan, plan_extraction
from lbm_lora.factorize import FixedRank

Save = Callable[[str, Mapping[str, Tensor]], Path]

TENSORS = {
    "conv_in.weight": torch.ones(8, 4, 3, 3),
    "conv_in.bias": torch.ones(8),
    "block.attn1.to_q.weight": torch.ones(8, 8),
    "block.attn2.to_out.0.weight": torch.ones(8, 8),
    "block.attn2.to_out.0.bias": torch.ones(8),
    "block.ff.net.0.proj.weight": torch.ones(16, 8),
    "block.norm1.weight": torch.ones(8),
    "proj_in.weight": torch.ones(8, 6, 1, 1),
    "embedding.table": torch.ones(10, 4),
    "conv1d.weight": torch.ones(4, 4, 3),
    "counter": torch.tensor(3),
    "empty.weight": torch.ones(0, 4),
}


@pytest.fixture
def plan(save: Save) -> Callable[..., Plan]:
    def build(base: Mapping[str, Tensor] = TENSORS, tuned: Mapping[str, Tensor] = TENSORS, **options: Any) -> Plan:
        paths = save("base.safetensors", base), save("tuned.safetensors", tuned)
        first, second = (open_checkpoint(path).component() for path in paths)
        return plan_extraction(first, second, FixedRank(linear=4, conv=3), **options)

    return build


def actions(plan: Plan) -> dict[str, tuple[Action, int | None, str]]:
    return {item.name: (item.action, item.rank, item.reason) for item in plan.items}


def kept(plan: Plan) -> set[str]:
    return {item.name for item in plan.items if item.action is not Action.EXCLUDE}


def test_every_tensor_has_an_action_and_a_reason(plan: Callable[..., Plan]) -> None:
    dense = Action.KEEP_DENSE, None
    assert actions(plan()) == {
        "conv_in.weight": (Action.DECOMPOSE, 3, "conv"),
        "conv_in.bias": (*dense, "1-dimensional"),
        "block.attn1.to_q.weight": (Action.DECOMPOSE, 4, "linear"),
        "block.attn2.to_out.0.weight": (Action.DECOMPOSE, 4, "linear"),
        "block.attn2.to_out.0.bias": (*dense, "1-dimensional"),
        "block.ff.net.0.proj.weight": (Action.DECOMPOSE, 4, "linear"),
        "block.norm1.weight": (*dense, "1-dimensional"),
        "proj_in.weight": (Action.DECOMPOSE, 3, "conv"),
        "embedding.table": (*dense, "2-dimensional"),
        "conv1d.weight": (*dense, "3-dimensional"),
        "counter": (Action.EXCLUDE, None, "not a floating point tensor"),
        "empty.weight": (*dense, "2-dimensional"),
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"include": ("attn1",)}, {"block.attn1.to_q.weight"}),
        ({"include": ("conv_in", "*.norm1")}, {"conv_in.weight", "conv_in.bias", "block.norm1.weight"}),
        ({"include": ("block.*.to_out.0",)}, {"block.attn2.to_out.0.weight", "block.attn2.to_out.0.bias"}),
        ({"include": ("attn",), "exclude": ("attn2",)}, {"block.attn1.to_q.weight"}),
        ({"include": ("re:^conv_in$",), "exclude": ("*.bias",)}, {"conv_in.weight"}),
        ({"include": COVERAGES["attention"]}, {name for name in TENSORS if "attn" in name}),
        ({"include": ("conv_in", "norm1"), "keep_dense": False}, {"conv_in.weight"}),
    ],
)
def test_include_and_exclude(plan: Callable[..., Plan], options: dict[str, Any], expected: set[str]) -> None:
    found = plan(**options)
    assert kept(found) == expected
    assert len(found.items) == len(TENSORS)


def test_a_plan_for_nothing_is_an_error(plan: Callable[..., Plan], tmp_path: Path) -> None:
    with pytest.raises(PairingError) as caught:
        plan(include=("conv_in",), exclude=("conv",))
    assert str(caught.value) == (
        f"include and exclude exclude all 12 tensors of {tmp_path / 'tuned.safetensors'}. Change one of them."
    )


def test_what_is_excluded_by_name_need_not_pair(plan: Callable[..., Plan]) -> None:
    base = {**TENSORS, "only_base.weight": torch.ones(2, 2), "other.weight": torch.ones(3, 3)}
    tuned = {**TENSORS, "only_tuned.weight": torch.ones(2, 2), "other.weight": torch.ones(2, 2)}
    with pytest.raises(PairingError, match="are in the base"):
        plan(base, tuned)
    with pytest.raises(PairingError, match=r"^other\.weight: base \(3, 3\) fp32 in base\.safetensors, tuned \(2, 2\)"):
        plan(base, tuned, exclude=("only_",))
    found = plan(base, tuned, exclude=("only_", "other"))
    assert len(found.items) == len(TENSORS) + 3
    assert kept(found) == set(TENSORS) - {"counter"}
