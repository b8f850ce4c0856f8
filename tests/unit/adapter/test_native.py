"""Native keys, and the lines about files that are no adapter."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lbm_lora.adapter.native import decode, dense_key
from lbm_lora.errors import AdapterError
from lbm_lora.naming import ParamName

WHERE = Path("x.safetensors")
UP, DOWN = torch.ones(4, 2), torch.ones(2, 6)


def error_of(tensors: dict[str, Tensor]) -> str:
    with pytest.raises(AdapterError) as caught:
        decode(tensors, "", WHERE)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("norm.weight", "denoiser.norm.diff"),
        ("norm.bias", "denoiser.norm.diff_b"),
        ("bn.running_mean", "denoiser.bn.running_mean.diff_param"),
        ("bias", "denoiser.bias.diff_param"),
        ("snake.alpha", "denoiser.snake.alpha.diff_param"),
        ("odd.diff", "denoiser.odd.diff.diff_param"),
        ("x.lora_up.weight", "denoiser.x.lora_up.diff"),
    ],
)
def test_the_key_of_a_dense_delta_and_back(name: str, key: str) -> None:
    assert dense_key("denoiser.", ParamName(name), torch.bfloat16) == key
    modules, dense = decode({key: torch.ones(3)}, "denoiser.", WHERE)
    assert (modules, list(dense)) == ({}, [name])


@pytest.mark.parametrize("other", [{"a.alpha": torch.tensor(1.0)}, {"a.lora_up.weight": UP}])
def test_factors_in_8_bits_and_others_are_refused(other: dict[str, Tensor]) -> None:
    stored = {"a.lora_up.int8": UP.char(), "a.lora_down.int8": DOWN.char(), "a.lora_unit": torch.ones(2)}
    assert error_of(stored | other) == "x.safetensors: a has factors in 8 bits and others. Remove one of them."


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({"a.lora_up.weight": UP}, "a has no lora_down.weight"),
        ({"a.lora_down.weight": DOWN}, "a has no lora_up.weight"),
        ({"a.alpha": torch.tensor(1.0)}, "a has no lora_up.weight"),
    ],
)
def test_a_factor_without_its_partner(tensors: dict[str, Tensor], text: str) -> None:
    assert error_of(tensors) == f"x.safetensors: {text}. The file is incomplete."


@pytest.mark.parametrize(
    ("up", "down"),
    [
        ((4, 2), (3, 6)),
        ((4, 2, 1, 1), (2, 6)),
        ((4, 2, 3, 3), (2, 6, 1, 1)),
        ((4, 0), (0, 6)),
        ((4, 2, 1), (2, 6, 3)),
    ],
)
def test_factors_that_do_not_belong_together(up: tuple[int, ...], down: tuple[int, ...]) -> None:
    assert error_of({"a.lora_up.weight": torch.ones(up), "a.lora_down.weight": torch.ones(down)}) == (
        f"x.safetensors: a: lora_up {up} and lora_down {down} do not fit together: "
        "the second size of lora_up and the first of lora_down must be the rank, and lora_up must have no kernel."
    )
