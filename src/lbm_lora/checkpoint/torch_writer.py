"""Write a `.ckpt` file in the format of `torch.save` atomically, tensor by tensor, in constant memory.

The archive has torch's layout (PyTorch file format version 3): the pickle first, then one stored record per tensor,
each at a multiple of 64 bytes so that `torch.load(mmap=True)` can map it. It holds only tensors and plain types, so
`weights_only=True` can read it.
"""

import collections
import io
import pickle
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import torch
from torch._utils import _rebuild_tensor_v2  # pyright: ignore[reportPrivateUsage, reportUnknownVariableType]

from lbm_lora.checkpoint.safetensors_writer import bytes_of
from lbm_lora.checkpoint.spec import TensorSpec, dtype_name
from lbm_lora.errors import CheckpointError
from lbm_lora.files import MARK, atomic_path

_ALIGNMENT = 64
_LOCAL_HEADER_BYTES = 30
_ZIP64_BYTES = 20
_EPOCH = (1980, 1, 1, 0, 0, 0)  # a fixed date, so that a rerun gives the same bytes
_STORAGES = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage,
    torch.int8: torch.CharStorage,
    torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
}


@dataclass(frozen=True)
class _Record:
    """Placeholder for a tensor in the pickle; its bytes follow in `data/<key>`."""

    key: str
    spec: TensorSpec


@dataclass(frozen=True)
class _RecordStorage:
    record: _Record


class _Pickler(pickle.Pickler):
    """Pickler that writes a `_Record` as torch writes a tensor."""

    def reducer_override(self, obj: Any, /) -> Any:
        if not isinstance(obj, _Record):
            return NotImplemented
        stride = torch.empty(obj.spec.shape, device="meta").stride()
        hooks: collections.OrderedDict[str, object] = collections.OrderedDict()
        arguments = (_RecordStorage(obj), 0, obj.spec.shape, stride, False, hooks)
        return _rebuild_tensor_v2, arguments

    def persistent_id(self, obj: Any, /) -> Any:
        if not isinstance(obj, _RecordStorage):
            return None
        spec = obj.record.spec
        return "storage", _STORAGES[spec.dtype], obj.record.key, "cpu", spec.numel


class TorchWriter:
    """Context manager: `write` the announced tensors in the announced order, exit.

    Args:
        path: the file to write.
        specs: every tensor, in order.
        kind: the kind of checkpoint for the mark, see `lbm_lora.files`.
        extra: plain entries next to the tensors.
        containers: each entry that holds the tensors -> the prefix of their names there; the bytes are stored once.
            The documented base has `model_state_dict`.
    """

    def __init__(
        self,
        path: Path,
        specs: Mapping[str, TensorSpec],
        *,
        kind: str = "",
        extra: Mapping[str, object] | None = None,
        containers: Mapping[str, str] = MappingProxyType({"model_state_dict": ""}),
    ) -> None:
        for name, spec in specs.items():
            if spec.dtype not in _STORAGES:
                raise CheckpointError(f"{name}: {dtype_name(spec.dtype)} cannot be stored in a .ckpt. Cast it first.")
        self._path = Path(path)
        self._mark = f"{MARK}: {kind}" if kind else MARK
        self._records = {name: _Record(str(index), spec) for index, (name, spec) in enumerate(specs.items())}
        self._waiting = list(specs)
        named = {
            container: {front + name: record for name, record in self._records.items()}
            for container, front in containers.items()
        }
        self._tree = {**(extra or {}), **named}
        self._stack = ExitStack()

    def __enter__(self) -> "TorchWriter":
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self._path))
            self._file = stack.enter_context(temporary.open("wb"))
            self._archive = stack.enter_context(zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED))
            buffer = io.BytesIO()
            _Pickler(buffer, protocol=2).dump(self._tree)
            self._record("data.pkl", buffer.getvalue())
            self._record("byteorder", b"little")
            self._stack = stack.pop_all()
        return self

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Append the next announced tensor."""
        record = self._records[name]
        if not self._waiting or self._waiting[0] != name or TensorSpec.of(tensor) != record.spec:
            raise AssertionError(f"announced {self._waiting[:1]} {record.spec}, written {name} {TensorSpec.of(tensor)}")
        self._waiting.pop(0)
        self._record(f"data/{record.key}", bytes_of(tensor))

    def _record(self, name: str, data: bytes | memoryview) -> None:
        """Write one stored record whose data start at a multiple of 64 bytes, padded as in torch (extra field `FB`)."""
        info = zipfile.ZipInfo(f"archive/{name}", date_time=_EPOCH)
        size = len(data)
        zip64 = _ZIP64_BYTES if size * 1.05 > zipfile.ZIP64_LIMIT else 0
        start = self._file.tell() + _LOCAL_HEADER_BYTES + len(info.filename) + zip64 + 4
        padding = -start % _ALIGNMENT
        info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
        info.file_size = size
        with self._archive.open(info, "w", force_zip64=bool(zip64)) as stream:
            stream.write(data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except BaseException as failure:
            self._stack.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._stack.__exit__(kind, error, trace)

    def _finish(self) -> None:
        if self._waiting:
            raise AssertionError(f"{len(self._waiting)} announced tensors of {self._path} were not written")
        self._record("version", b"3\n")
        self._record(self._mark, b"")  # torch reads the records that it knows
