"""Dtype, shape and bytes of a tensor; the first two are known before the bytes are read."""

import math
from dataclasses import dataclass

import torch

from lbm_lora.errors import CheckpointError, ConfigError

SAFETENSORS_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Dtype names in a safetensors header (safetensors format specification)."""

_CODES = {dtype: code for code, dtype in SAFETENSORS_DTYPES.items()}
_SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}


@dataclass(frozen=True)
class TensorSpec:
    """Dtype and shape of one tensor of a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    @property
    def code(self) -> str:
        """The dtype as a safetensors header spells it."""
        if self.dtype not in _CODES:
            raise CheckpointError(f"{self.dtype} cannot be stored in a safetensors file. Cast the tensor first.")
        return _CODES[self.dtype]

    @property
    def is_floating(self) -> bool:
        return self.dtype.is_floating_point

    def __str__(self) -> str:
        return f"{self.shape} {dtype_name(self.dtype)}"

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "TensorSpec":
        return cls(dtype=tensor.dtype, shape=tuple(tensor.shape))


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor in C order, without a copy if it is already contiguous."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype as flags, reports and metadata spell it: `torch.bfloat16` -> `bf16`."""
    return _SHORT.get(dtype, str(dtype).removeprefix("torch."))


TORCH_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in _SHORT}
"""dtypes by the names that torch has for them: `bfloat16`."""


def dtype_of(name: str) -> torch.dtype:
    """Return the torch dtype for `float`, `fp32`, `fp16` or `bf16`, or for torch's own name of one: `float32`."""
    known = {"float": torch.float32, **{short: dtype for dtype, short in _SHORT.items()}, **TORCH_NAMES}
    if name.removeprefix("torch.") not in known:
        raise ConfigError(f"unknown dtype '{name}'. Choose one of {', '.join(known)}.")
    return known[name.removeprefix("torch.")]
