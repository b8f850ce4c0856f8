"""Write a checkpoint atomically, tensor by tensor, in constant memory: a `.safetensors` file or one of `torch.save`."""

import collections
import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, TypeVar

import torch
from torch._utils import _rebuild_tensor_v2  # pyright: ignore[reportPrivateUsage, reportUnknownVariableType]

from lbm_lora.checkpoint.spec import TensorSpec, bytes_of, dtype_name
from lbm_lora.errors import CheckpointError
from lbm_lora.files import MARK, atomic_path

_ALIGNMENT = 8
_LENGTH_BYTES = 8
_FARTHEST = 9_999_999_999
_RECORD_ALIGNMENT = 64
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


_W = TypeVar("_W", bound="_Writer")


class _Writer:
    """A file that is open between enter and exit, and absent after an error."""

    def __init__(self, path: Path) -> None:
        self._path = Path(path)
        self._stack = ExitStack()

    def __enter__(self: _W) -> _W:
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self._path))
            self._file = stack.enter_context(temporary.open("wb"))
            self._begin(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if error is not None:
                raise error
            self._finish()

    def _begin(self, stack: ExitStack) -> None: ...

    def _finish(self) -> None: ...


class SafetensorsWriter(_Writer):
    """Context manager: `write` the announced tensors, set `metadata`, exit.

    Room for the header is reserved at the front, since the metadata, and which of the announced tensors are written,
    may be known only at the end. The header is padded with spaces, as the format allows.

    Args:
        specs: every tensor that may be written. Those that are not written are left out of the file.
        metadata: the header's `__metadata__`; may be replaced until exit.
        metadata_room: bytes reserved for later metadata, beyond the size of `metadata`.
    """

    def __init__(
        self,
        path: Path,
        specs: Mapping[str, TensorSpec],
        *,
        metadata: Mapping[str, str] | None = None,
        metadata_room: int = 0,
    ) -> None:
        super().__init__(path)
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self._specs = dict(specs)
        self._entries: dict[str, tuple[TensorSpec, int]] = {}
        self._late: list[tuple[str, torch.Tensor]] = []
        self._position = 0
        end = sum(spec.nbytes for spec in specs.values())
        worst = _header({name: (spec, end) for name, spec in specs.items()}, self.metadata)
        self._room = -(-(len(worst) + metadata_room) // _ALIGNMENT) * _ALIGNMENT

    def _begin(self, stack: ExitStack) -> None:
        self._file.seek(_LENGTH_BYTES + self._room)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Append one announced tensor.

        A tensor whose size would misalign the next one is held back until the end: readers need each tensor at a
        multiple of its item size, and the format allows no gaps.
        """
        spec, announced = TensorSpec.of(tensor), self._specs.pop(name, None)
        if spec != announced:
            raise AssertionError(f"{name}: announced and not yet written {announced}, written {spec}")
        if spec.nbytes % _ALIGNMENT:
            self._late.append((name, tensor))
        else:
            self._append(name, tensor)

    def _append(self, name: str, tensor: torch.Tensor) -> None:
        self._entries[name] = (TensorSpec.of(tensor), self._position)
        self._position += self._file.write(bytes_of(tensor))

    def _finish(self) -> None:
        """Append the held-back tensors, widest items first, and fill in the header."""
        for name, tensor in sorted(self._late, key=lambda row: -row[1].dtype.itemsize):
            self._append(name, tensor)
        header = _header(self._entries, self.metadata)
        if len(header) > self._room:
            raise AssertionError(f"the header of {self._path} needs {len(header)} bytes, {self._room} were reserved")
        self._file.seek(0)
        self._file.write(self._room.to_bytes(_LENGTH_BYTES, "little") + header.ljust(self._room))


def entry_bytes(name: str, spec: TensorSpec) -> int:
    """Return the most bytes that a tensor takes in the header: offsets are counted with the digits of a 10 GB file."""
    return len(_header({name: (spec, _FARTHEST)}, {})) - len("{}") + len(",")


def _header(entries: Mapping[str, tuple[TensorSpec, int]], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, (spec, offset) in entries.items():
        header[name] = {"dtype": spec.code, "shape": list(spec.shape), "data_offsets": [offset, offset + spec.nbytes]}
    # a file name in another encoding may be among the metadata; it is for people
    return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")


class _Record(NamedTuple):
    """Stands for a tensor in the pickle; its bytes follow in `data/<key>`."""

    key: str
    spec: TensorSpec


class _RecordStorage(NamedTuple):
    record: _Record


class _Pickler(pickle.Pickler):
    """Pickler that writes a `_Record` as torch writes a tensor."""

    def reducer_override(self, obj: Any, /) -> Any:
        if not isinstance(obj, _Record):
            return NotImplemented
        stride = torch.empty(obj.spec.shape, device="meta").stride()
        hooks: collections.OrderedDict[str, object] = collections.OrderedDict()
        return _rebuild_tensor_v2, (_RecordStorage(obj), 0, obj.spec.shape, stride, False, hooks)

    def persistent_id(self, obj: Any, /) -> Any:
        if not isinstance(obj, _RecordStorage):
            return None
        key, spec = obj.record
        return "storage", _STORAGES[spec.dtype], key, "cpu", spec.numel


class TorchWriter(_Writer):
    """Context manager: `write` the announced tensors in the announced order, exit.

    The archive has torch's layout (PyTorch file format version 3): the pickle first, then one stored record per tensor,
    each at a multiple of 64 bytes so that `torch.load(mmap=True)` can map it. It holds only tensors and plain types, so
    `weights_only=True` can read it.

    Args:
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
        super().__init__(path)
        for name, spec in specs.items():
            if spec.dtype not in _STORAGES:
                raise CheckpointError(f"{name}: {dtype_name(spec.dtype)} cannot be stored in a .ckpt. Cast it first.")
        self._mark = f"{MARK}: {kind}" if kind else MARK
        self._records = {name: _Record(str(index), spec) for index, (name, spec) in enumerate(specs.items())}
        self._waiting = list(specs)
        named = {
            container: {front + name: record for name, record in self._records.items()}
            for container, front in containers.items()
        }
        self._tree = {**(extra or {}), **named}

    def _begin(self, stack: ExitStack) -> None:
        self._archive = stack.enter_context(zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED))
        buffer = io.BytesIO()
        _Pickler(buffer, protocol=2).dump(self._tree)
        self._record("data.pkl", buffer.getvalue())
        self._record("byteorder", b"little")

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
        padding = -start % _RECORD_ALIGNMENT
        info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
        info.file_size = size
        with self._archive.open(info, "w", force_zip64=bool(zip64)) as stream:
            stream.write(data)

    def _finish(self) -> None:
        if self._waiting:
            raise AssertionError(f"{len(self._waiting)} announced tensors of {self._path} were not written")
        self._record("version", b"3\n")
        self._record(self._mark, b"")  # torch reads the records that it knows
