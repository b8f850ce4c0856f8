"""Write adapter files module by module; the bytes of their parts, known before they are written."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from lbm_lora.adapter.builder import AdapterBuilder
from lbm_lora.adapter.metadata import AdapterMetadata
from lbm_lora.adapter.module import Adapter, LoraModule
from lbm_lora.adapter.native import dense_key, encode_module, module_specs
from lbm_lora.adapter.packed import encode_packed
from lbm_lora.checkpoint import (
    SafetensorsWriter,
    TensorSpec,
    dtype_name,
    dtype_of,
    entry_bytes,
)
from lbm_lora.factorize import PACKED, Grid, dense_dtype
from lbm_lora.naming import ModuleName, ParamName

METADATA_ROOM = 8192  # bytes for values that are known only after the last tensor


class AdapterWriter:
    """Writer of an adapter file, module by module. Announced tensors that are never added are left out of the file.

    Args:
        dtype: dtype of factors and dense deltas; with int8 factors, dense deltas are fp16.
        shapes, ranks: shapes and ranks of the weights that may be added as lora modules.
        dense: shapes of the parameters that may be added as dense deltas.
        metadata: metadata known so far; may be replaced until exit.
    """

    def __init__(
        self,
        path: Path,
        prefix: str,
        dtype: torch.dtype,
        shapes: Mapping[ModuleName, tuple[int, ...]],
        ranks: Mapping[ModuleName, int],
        dense: Mapping[ParamName, tuple[int, ...]],
        metadata: AdapterMetadata,
    ) -> None:
        specs: dict[str, TensorSpec] = {}
        for name, shape in shapes.items():
            specs |= module_specs(prefix, name, shape, ranks[name], dtype)
        stored = dense_dtype(dtype)
        specs |= {dense_key(prefix, name, dtype): TensorSpec(stored, shape) for name, shape in dense.items()}
        self.metadata = metadata
        self._prefix, self._dtype = prefix, dtype
        self._file = SafetensorsWriter(path, specs, metadata=metadata.to_header(), metadata_room=METADATA_ROOM)
        self._stack = ExitStack()

    def add_module(self, module: LoraModule) -> None:
        for key, tensor in encode_module(self._prefix, module, self._dtype).items():
            self._file.write(key, tensor)

    def add_dense(self, name: ParamName, delta: Tensor, grid: Grid | None = None) -> None:
        self._file.write(dense_key(self._prefix, name, self._dtype), delta)

    def __enter__(self) -> "AdapterWriter":
        self._stack.enter_context(self._file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.metadata = self.metadata.to_header()
        self._stack.__exit__(kind, error, trace)


class PackedWriter:
    """Writer of a packed file, with the interface of `AdapterWriter`; all is written at exit, after the last delta.

    Args:
        metadata: metadata known so far; may be replaced until exit.
    """

    def __init__(self, path: Path, prefix: str, metadata: AdapterMetadata) -> None:
        self.metadata = metadata
        self._path = path
        self._built = AdapterBuilder(prefix, PACKED, metadata)
        self._encoded: dict[str, Tensor] = {}

    def add_module(self, module: LoraModule) -> None:
        self._built.add_module(module)

    def add_dense(self, name: ParamName, delta: Tensor, grid: Grid | None = None) -> None:
        self._built.add_dense(name, delta, grid)

    def __enter__(self) -> "PackedWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            _write_tensors(self.encoded(), self.metadata, self._path)

    def encoded(self) -> dict[str, Tensor]:
        """Return the tensors of the file, once all deltas are added."""
        self._encoded = self._encoded or encode_packed(self._built.adapter())
        return self._encoded


def write_packed(adapter: Adapter, path: Path) -> None:
    """Write a packed file atomically; see `encode_packed`."""
    _write_tensors(encode_packed(adapter), adapter.metadata, path)


def _write_tensors(tensors: Mapping[str, Tensor], metadata: AdapterMetadata, path: Path) -> None:
    specs = {key: TensorSpec.of(tensor) for key, tensor in tensors.items()}
    with SafetensorsWriter(path, specs, metadata=metadata.to_header()) as writer:
        for key, tensor in tensors.items():
            writer.write(key, tensor)


def module_bytes(prefix: str, name: ModuleName, shape: tuple[int, ...], rank: int, dtype: torch.dtype) -> int:
    """Return the bytes of a lora module in a file: its tensors and their header entries."""
    specs = module_specs(prefix, name, shape, rank, dtype)
    return sum(entry_bytes(key, spec) + spec.nbytes for key, spec in specs.items())


def precision(name: str) -> torch.dtype:
    """Return the dtype of an adapter file's factors for `float`, `fp16`, `bf16`, `int8` or `auto`.

    Raises:
        CheckpointError: any other name.
    """
    return {"int8": torch.int8, "auto": PACKED}.get(name) or dtype_of(name)


def precision_name(dtype: torch.dtype) -> str:
    """Return what metadata call the dtype of a file's factors."""
    return "packed" if dtype == PACKED else dtype_name(dtype)


def rank_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Return the bytes of each rank of a lora module in a file."""
    one, none = (module_specs("", ModuleName(""), shape, rank, dtype).values() for rank in (1, 0))
    return sum(spec.nbytes for spec in one) - sum(spec.nbytes for spec in none)


def stored_bytes(prefix: str, name: ParamName, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Return the bytes of a dense delta in a file with factors of `dtype`: its values and their header entry."""
    spec = TensorSpec(dense_dtype(dtype), shape)
    return entry_bytes(dense_key(prefix, name, dtype), spec) + spec.nbytes
