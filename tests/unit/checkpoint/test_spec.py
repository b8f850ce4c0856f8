"""Dtype and shape of a tensor, and the names of dtypes."""

import pytest
import torch

from lbm_lora.checkpoint import TensorSpec, dtype_name, dtype_of
from lbm_lora.errors import CheckpointError


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (TensorSpec(torch.bfloat16, (1280, 1280)), "(1280, 1280) bf16"),
        (TensorSpec(torch.float32, ()), "() fp32"),
        (TensorSpec(torch.float16, (3,)), "(3,) fp16"),
        (TensorSpec(torch.int64, (0, 2)), "(0, 2) int64"),
    ],
)
def test_a_spec_in_words(spec: TensorSpec, text: str) -> None:
    assert str(spec) == text


def test_a_dtype_that_safetensors_lacks_is_refused() -> None:
    with pytest.raises(CheckpointError) as caught:
        _ = TensorSpec(torch.complex128, ()).code
    assert str(caught.value) == "torch.complex128 cannot be stored in a safetensors file. Cast the tensor first."


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16", "fp64"])
def test_names_of_dtypes_go_both_ways(name: str) -> None:
    assert dtype_name(dtype_of(name)) == name
