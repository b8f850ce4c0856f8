"""The modules of a network that can be trained."""

import pytest
import torch

from lbm_lora.adapter import Adapter, LoraModule
from lbm_lora.errors import AdapterError
from lbm_lora.naming import ModuleName
from lbm_lora.trainable.layout import layout_of, modules_in
from smallnet import OneOfEach

LAYOUT = layout_of(OneOfEach())


def test_layout_takes_the_modules_that_peft_can_wrap_exactly() -> None:
    assert dict(LAYOUT.layers) == {
        "conv_in": (8, 4, 3, 3),
        "conv_out": (2, 8, 3, 3),
        "attn1": (8, 8),
        "attn2": (6, 8),
    }
    assert LAYOUT.norms == ("norm",)
    assert LAYOUT.biased >= {"conv_in", "norm", "attn2"}
    assert "attn1" not in LAYOUT.biased


def adapter(*names: str) -> Adapter:
    return Adapter(
        {ModuleName(n): LoraModule(ModuleName(n), torch.ones(1, 8), torch.ones(8, 1), 1.0) for n in names}, {}
    )


def test_modules_of_an_adapter_come_in_the_networks_order() -> None:
    assert modules_in(LAYOUT, adapter("attn2", "attn1", "conv_in")) == ["conv_in", "attn1", "attn2"]
    with pytest.raises(AdapterError, match=r"1 of its modules are neither Linear nor plain Conv2d .*: grouped"):
        modules_in(LAYOUT, adapter("attn1", "grouped"))
