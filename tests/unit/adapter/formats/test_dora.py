"""DoRA: the delta against the formula written out by row, and against PEFT's shapes of magnitudes."""

from pathlib import Path

import pytest
import torch

from lbm_lora.adapter.formats.rebuild import base_weight, dora_delta
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import AdapterError
from lbm_lora.naming import ModuleName

WHERE = Path("x.safetensors")


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 3, 3)])
def test_each_output_has_the_length_that_its_magnitude_says(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    base, delta = torch.randn(shape), torch.randn(shape)
    magnitude = torch.rand(shape[0]) + 0.5
    tuned = base + dora_delta(base, delta, magnitude.reshape(-1, *(1 for _ in shape[1:])))
    for row, length, direction in zip(tuned, magnitude, base + delta, strict=True):
        torch.testing.assert_close(row, direction * (length / direction.norm()))


def test_each_input_may_have_a_magnitude_instead() -> None:
    torch.manual_seed(0)
    base, delta, magnitude = torch.randn(4, 3), torch.randn(4, 3), torch.rand(1, 3) + 0.5
    tuned = base + dora_delta(base, delta, magnitude)
    torch.testing.assert_close(tuned.norm(dim=0), magnitude[0])


def test_the_base_must_have_the_weight() -> None:
    base = open_checkpoint({"mid.weight": torch.ones(4, 3)}).component()
    assert torch.equal(base_weight(base, ModuleName("mid"), (4, 3), WHERE), torch.ones(4, 3))
    with pytest.raises(AdapterError, match=r"a weight of shape \(4, 2\), but state dict has "):
        base_weight(base, ModuleName("mid"), (4, 2), WHERE)
    with pytest.raises(AdapterError, match=r"but state dict has no up\.weight"):
        base_weight(base, ModuleName("up"), (4, 3), WHERE)
