"""Keys of PEFT and diffusers: two that mean the same are refused, whatever they look like."""

import pytest
import torch
from torch import Tensor

from lbm_lora.adapter import load_adapter
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import AdapterError

LORA = {"unet.a.lora_A.weight": torch.ones(2, 3), "unet.a.lora_B.weight": torch.ones(4, 2)}
BASE = {"denoiser.a.weight": torch.ones(4, 3), "denoiser.a.bias": torch.ones(4), "denoiser.n.weight": torch.ones(3)}


def error_of(tensors: dict[str, Tensor]) -> str:
    with pytest.raises(AdapterError) as caught:
        load_adapter({**LORA, **tensors}, base=open_checkpoint(BASE).component())
    return str(caught.value)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a.lora_A.weight", "a.lora_linear_layer.down.weight"),
        ("a.lora_A.weight", "a.lora_A.default.weight"),
        ("a.lora_B.bias", "a.lora_B.default.bias"),
        ("a.lora_magnitude_vector", "a.lora_magnitude_vector.weight"),
        ("a.bias", "a.base_layer.bias"),
        ("n.weight", "n.modules_to_save.default.weight"),
        ("n.modules_to_save.one.weight", "n.modules_to_save.two.weight"),
    ],
)
def test_keys_that_say_the_same_twice_are_refused(first: str, second: str) -> None:
    found = error_of({f"unet.{first}": torch.ones(2, 3), f"unet.{second}": torch.zeros(2, 3)})
    assert found == f"the state dict: {second} repeats what another key says."


def test_biases_and_magnitudes_are_as_many_as_outputs() -> None:
    for key, what in (("lora_B.bias", "biases of lora_B"), ("lora_magnitude_vector", "magnitudes")):
        assert error_of({f"unet.a.{key}": torch.ones(3)}) == (
            f"the state dict: a has 3 {what} for 4 outputs. It is damaged."
        )
