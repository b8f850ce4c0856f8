"""Dtype and shape of a tensor, and the names of dtypes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lbm_lora.checkpoint import TensorSpec, dtype_name, dtype_of
from lbm_lora.checkpoint.spec import SAFETENSORS_DTYPES
from lbm_lora.errors import CheckpointError, ConfigError


@given(st.sampled_from(list(SAFETENSORS_DTYPES.values())), st.lists(st.integers(0, 4), max_size=4))
def test_the_size_is_the_tensors(dtype: torch.dtype, shape: list[int]) -> None:
    tensor = torch.zeros(shape, dtype=dtype)
    spec = TensorSpec.of(tensor)
    assert spec == TensorSpec(dtype, tuple(shape))
    assert (spec.numel, spec.nbytes) == (tensor.numel(), tensor.nbytes)
    assert spec.is_floating == tensor.is_floating_point()
    assert SAFETENSORS_DTYPES[spec.code] == dtype


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


def test_the_documented_name_of_fp32() -> None:
    assert dtype_of("float") is torch.float32


def test_another_name_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        dtype_of("half")
    names = "float, bf16, fp16, fp32, fp64, bfloat16, float16, float32, float64"
    assert str(caught.value) == f"unknown dtype 'half'. Choose one of {names}."


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_names_of_torch(dtype: torch.dtype) -> None:
    assert dtype_of(str(dtype)) is dtype_of(str(dtype).removeprefix("torch.")) is dtype
