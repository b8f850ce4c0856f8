"""Numbers of a LoRA that are not finite, or would not be in a file."""

import math

import pytest
import torch

from lbm_lora.adapter import Adapter, LoraModule
from lbm_lora.adapter.finite import check_finite
from lbm_lora.errors import AdapterError
from lbm_lora.naming import ModuleName, ParamName

A = ModuleName("a")


def lora(alpha: float = 1.0, up: float = 1.0, dense: float = 1.0) -> Adapter:
    module = LoraModule(A, torch.ones(1, 3), torch.full((2, 1), up), alpha)
    return Adapter({A: module}, {ParamName("b.bias"): torch.tensor([dense])})


def test_a_finite_lora_is_returned() -> None:
    given = lora(alpha=-3.4e38)
    assert check_finite(given) is given


@pytest.mark.parametrize("bad", [math.inf, math.nan, -1e39])
def test_an_alpha_that_fp32_does_not_hold_is_refused(bad: float) -> None:
    with pytest.raises(AdapterError, match=r"1 of 2 deltas hold NaN or infinite values: a\."):
        check_finite(lora(alpha=bad))


def test_factors_and_dense_deltas_are_named() -> None:
    with pytest.raises(AdapterError, match=r"2 of 2 deltas hold NaN or infinite values: a, b\.bias\."):
        check_finite(lora(up=math.nan, dense=math.inf))
