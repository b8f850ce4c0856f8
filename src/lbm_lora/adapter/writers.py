"""Write adapters piece by piece, to a file or in memory; and know the bytes of their parts beforehand."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from lbm_lora.adapter.ledger import Ledger, LedgerRow
from lbm_lora.adapter.metadata import AdapterMetadata
from lbm_lora.adapter.module import Adapter, LoraModule, StoredDelta
from lbm_lora.adapter.native import dense_key, encode_module, module_specs
from lbm_lora.adapter.packed import encode_packed
from lbm_lora.checkpoint import SafetensorsWriter, TensorSpec, dtype_name, dtype_of, entry_bytes
from lbm_lora.factorize import PACKED, Grid, dense_dtype
from lbm_lora.naming import ModuleName, ParamName
from lbm_lora.progress import SILENT, Progress

METADATA_ROOM = 8192  # bytes for values that are known only after the last tensor


class AdapterBuilder:
    """Collects lora modules and dense deltas in memory, as `AdapterWriter` does in a file.

    Args:
        metadata: as far as it is known; may be replaced until the end.
    """

    def __init__(self, prefix: str, dtype: torch.dtype, metadata: AdapterMetadata) -> None:
        self.metadata = metadata
        self._prefix, self._dtype = prefix, dtype
        self._modules: dict[ModuleName, LoraModule] = {}
        self._dense: dict[ParamName, Tensor] = {}
        self._grids: dict[ParamName, Grid] = {}

    def add_module(self, module: LoraModule) -> None:
        self._modules[module.name] = module

    def add_dense(self, name: ParamName, delta: Tensor, grid: Grid | None = None) -> None:
        self._dense[name] = delta
        if grid is not None:
            self._grids[name] = grid

    def adapter(self) -> Adapter:
        """Return the adapter of the parts added so far."""
        dtype = self._dtype if self._dtype in (torch.int8, PACKED) else None
        return Adapter(
            dict(self._modules), dict(self._dense), self.metadata, self._prefix, dtype=dtype, grids=dict(self._grids)
        )


class AdapterWriter:
    """Writer of an adapter file, module by module. Announced tensors that are never added are left out of the file.

    Args:
        dtype: dtype of factors and dense deltas; with int8 factors, dense deltas are fp16.
        shapes, ranks: shapes and ranks of the weights that may be added as lora modules.
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


class PackedWriter(AdapterBuilder):
    """Writer of a packed file; all is written at exit, after the last delta."""

    def __init__(self, path: Path, prefix: str, metadata: AdapterMetadata) -> None:
        super().__init__(prefix, PACKED, metadata)
        self._path = path
        self._encoded: dict[str, Tensor] = {}

    def __enter__(self) -> "PackedWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            write_tensors(self.encoded(), self.metadata.to_header(), self._path)

    def encoded(self) -> dict[str, Tensor]:
        """Return the tensors of the file, once all deltas are added."""
        self._encoded = self._encoded or encode_packed(self.adapter())
        return self._encoded


def write_tensors(tensors: Mapping[str, Tensor], header: Mapping[str, str], path: Path) -> None:
    """Write a `.safetensors` file atomically."""
    specs = {key: TensorSpec.of(tensor) for key, tensor in tensors.items()}
    with SafetensorsWriter(path, specs, metadata=header) as writer:
        for key, tensor in tensors.items():
            writer.write(key, tensor)


@dataclass(frozen=True)
class Outcome:
    """Outcome for one tensor: its ledger row, and its lora module or dense delta if it is stored. In a packed file the
    dense delta has a grid."""

    row: LedgerRow
    module: LoraModule | None = None
    dense: Tensor | None = None
    grid: Grid | None = None

    def stored(self) -> StoredDelta:
        """Return what is stored for the param."""
        return self.row.name, self.dense if self.module is None else self.module


def store_outcomes(
    outcomes: Iterable[Sequence[Outcome]],
    stores: Sequence[AdapterWriter | AdapterBuilder],
    progress: Progress = SILENT,
) -> list[Ledger]:
    """Add the outcomes of every tensor, one for each store, and return the ledger of each store."""
    rows: list[list[LedgerRow]] = [[] for _ in stores]
    for several in outcomes:
        for store, outcome, kept in zip(stores, several, rows, strict=True):
            if outcome.module is not None:
                store.add_module(outcome.module)
            if outcome.dense is not None:
                store.add_dense(outcome.row.name, outcome.dense, outcome.grid)
            kept.append(outcome.row)
        progress.advance()
    return [Ledger(tuple(kept)) for kept in rows]


def module_bytes(prefix: str, name: ModuleName, shape: tuple[int, ...], rank: int, dtype: torch.dtype) -> int:
    """Return the bytes of a lora module in a file: its tensors and their header entries."""
    specs = module_specs(prefix, name, shape, rank, dtype)
    return sum(entry_bytes(key, spec) + spec.nbytes for key, spec in specs.items())


def rank_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Return the bytes of each rank of a lora module in a file."""
    one, none = (module_specs("", ModuleName(""), shape, rank, dtype).values() for rank in (1, 0))
    return sum(spec.nbytes for spec in one) - sum(spec.nbytes for spec in none)


def stored_bytes(prefix: str, name: ParamName, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Return the bytes of a dense delta in a file with factors of `dtype`: its values and their header entry."""
    spec = TensorSpec(dense_dtype(dtype), shape)
    return entry_bytes(dense_key(prefix, name, dtype), spec) + spec.nbytes


def precision(name: str) -> torch.dtype:
    """Return the dtype of an adapter file's factors for `float`, `fp16`, `bf16`, `int8` or `auto`."""
    return {"int8": torch.int8, "auto": PACKED}.get(name) or dtype_of(name)


def precision_name(dtype: torch.dtype) -> str:
    """Return what metadata call the dtype of a file's factors."""
    return "packed" if dtype == PACKED else dtype_name(dtype)
