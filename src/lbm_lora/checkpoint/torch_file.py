"""Read a `.ckpt`, `.pt` or `.bin` file of `torch.save` by tensor name, without running code in it.

A file of `torch.save` is a zip archive: `data.pkl` describes the tensors, `data/<key>` holds their bytes. The
unpickler used here knows only tensors and plain containers; every other class becomes an inert stand-in, so a file can
neither run code nor fail because a class of its trainer is not installed. Its instructions are read once before they
are followed, so that it cannot ask for memory that its size does not justify. Tensor bytes stay in the file, behind a
memory map, until a tensor is requested.

`torch.load` with such an unpickler would do most of this, but it hands TorchScript archives to `torch.jit.load`, takes
compressed records for tensors, and lets a pickle fill the memory: the checks against that are half of this module.
"""

import collections
import io
import mmap
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch

from lbm_lora.checkpoint.spec import TensorSpec
from lbm_lora.errors import CheckpointError

_ZIP_SIGNATURE = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., lengths of name and extra field (zip, section 4.3.7)
_CONTAINERS = ("model_state_dict", "state_dict")
_MAX_PICKLE_BYTES = 64 * 2**20  # the pickle of a complete LBM takes 0.3 MB
_MAX_VALUES = 100_000  # values of the plain entries, shared ones counted each time
_MAX_DEPTH = 50
_MEMO_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}


@dataclass(frozen=True)
class _LazyTensor:
    """A tensor, as described in the pickle. Its dtype is None for dtypes that no network uses."""

    key: str
    dtype: torch.dtype | None
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Inert:
    """Stand-in for an object whose class is not loaded. It accepts any call and does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...
    def __setstate__(self, state: object) -> None: ...
    def __setitem__(self, key: object, value: object) -> None: ...
    def append(self, item: object) -> None: ...
    def extend(self, items: object) -> None: ...
    def __call__(self, *args: object, **kwargs: object) -> "_Inert":
        return self


_Storage = tuple[str, torch.dtype | None]  # key and dtype


def _rebuild(
    storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: object
) -> _LazyTensor:
    """Describe a tensor; `_rebuild_tensor_v3` says its dtype itself."""
    key, dtype = storage
    dtype = next((item for item in rest if isinstance(item, torch.dtype)), dtype)
    return _LazyTensor(key, dtype, offset, tuple(size), tuple(stride))


def _first(value: object, *rest: object) -> object:
    return value


def _rebuild_from_type(rebuild: object, kind: object, arguments: tuple[object, ...], *rest: object) -> object:
    return rebuild(*arguments) if rebuild in (_rebuild, _first) else _Inert()  # pyright: ignore[reportCallIssue]


_KNOWN: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
}


class _Unpickler(pickle.Unpickler):
    """Unpickler that builds tensor descriptions and plain containers; anything else becomes inert."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        known = _KNOWN.get((module_name, global_name))
        if known is not None:
            return known
        if module_name in ("torch", "torch.storage") and global_name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[global_name]
        dtype = getattr(torch, global_name, None) if module_name == "torch" else None
        return dtype if isinstance(dtype, torch.dtype) else _Inert

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, *_ = cast(tuple[Any, ...], pid)
        return str(key), dtype if isinstance(dtype, torch.dtype) else None


class TorchFile:
    """Read-only view of one file: `specs`, `read`, and the entries other than tensors in `extra`."""

    metadata: Mapping[str, str] = {}

    def __init__(self, path: Path) -> None:
        self.path = path
        if not _is_archive(path):
            with path.open("rb") as file:
                if file.read(4) == _ZIP_SIGNATURE:
                    raise CheckpointError(f"{path} is truncated: its zip archive has no end. Download it again.")
            raise CheckpointError(
                f"{path} is not a file in the current torch.save format (a zip archive). If it is an older pickle, "
                "load it with torch.load(..., weights_only=True) and save it again."
            )
        try:
            with zipfile.ZipFile(path) as archive, path.open("rb") as file:
                root = _root(path, archive)
                self._places = _places(archive, file, f"{root}data/")
                tree = _Unpickler(io.BytesIO(_checked_pickle(path, archive, f"{root}data.pkl"))).load()
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except RecursionError:
            raise CheckpointError(f"{path} cannot be read as a checkpoint: it nests too deeply.") from None
        except (CheckpointError, OSError):
            raise
        except Exception as error:  # a damaged pickle or archive may raise nearly anything (documentation of pickle)
            said = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{path} cannot be read as a checkpoint: {type(error).__name__}: {said}.") from None
        tensors, self.extra = _split(path, tree)
        self._tensors = tensors
        self.specs: Mapping[str, TensorSpec] = {name: self._spec(name, lazy) for name, lazy in tensors.items()}

    def _spec(self, name: str, lazy: _LazyTensor) -> TensorSpec:
        """Return a tensor's dtype and shape, checked against the bytes that the file holds for it."""
        if lazy.key not in self._places:
            raise CheckpointError(f"{self.path}: {name} has no data. The file is damaged: download it again.")
        numbers = (lazy.offset, *lazy.shape, *lazy.stride)
        are_sizes = all(type(number) is int and 0 <= number < 2**63 for number in numbers)
        if lazy.dtype is None or lazy.dtype.is_complex or not are_sizes:
            raise CheckpointError(
                f"{self.path}: {name} has the dtype {lazy.dtype or 'of another program'} and the shape "
                f"{str(lazy.shape)[:100]}, which no weight has."
            )
        spec, nbytes = TensorSpec(lazy.dtype, lazy.shape), self._places[lazy.key][1]
        if spec.nbytes > nbytes:
            raise CheckpointError(
                f"{self.path}: {name} is {spec}, but has only {nbytes:,} bytes. The file is damaged: download it again."
            )
        return spec

    def read(self, name: str) -> torch.Tensor:
        lazy, dtype = self._tensors[name], self.specs[name].dtype
        offset, nbytes = self._places[lazy.key]
        try:
            flat = torch.empty(0, dtype=torch.uint8)
            if nbytes:
                flat = torch.frombuffer(self._map, dtype=torch.uint8, count=nbytes, offset=offset)
            if offset % dtype.itemsize:
                flat = flat.clone()
            return flat.view(dtype).as_strided(lazy.shape, lazy.stride, lazy.offset)
        except (RuntimeError, TypeError, ValueError):
            raise CheckpointError(
                f"{self.path}: {name} is {self.specs[name]}, but has only {nbytes:,} bytes. "
                "The file is damaged: download it again."
            ) from None


def _is_archive(path: Path) -> bool:
    """Return whether a file ends as a zip archive does, damaged or not."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # Python 3.11 and 3.12, at some damaged ends
        return True


def _root(path: Path, archive: zipfile.ZipFile) -> str:
    names = archive.namelist()
    root = next((name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")), None)
    if root is None:
        raise CheckpointError(f"{path} is a zip archive, but torch.save did not write it: it has no data.pkl.")
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder")[:16].strip() == b"big":
        raise CheckpointError(f"{path} was written on a big-endian machine. Save it again on a little-endian one.")
    return root


def _checked_pickle(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    """Return the pickle, whose size is bounded and whose memo has no more places than instructions."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > _MAX_PICKLE_BYTES:
        raise CheckpointError(
            f"{path}: {name} is compressed or larger than {_MAX_PICKLE_BYTES // 2**20} MiB, which torch.save does not "
            "write for a network. Save only the tensors."
        )
    data = archive.read(info)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if opcode.name in _MEMO_PUTS and int(argument or 0) > count:
            raise CheckpointError(f"{path}: its pickle asks for memory that it does not use. The file is not safe.")
    return data


def _places(archive: zipfile.ZipFile, file: IO[bytes], folder: str) -> dict[str, tuple[int, int]]:
    """Return where each storage's bytes are in the file: key -> (offset, size)."""
    places: dict[str, tuple[int, int]] = {}
    for info in archive.infolist():
        if not info.filename.startswith(folder):
            continue
        if info.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(
                f"{archive.filename}: the tensors are compressed, which torch.save never does. Save the file again."
            )
        file.seek(info.header_offset)
        _, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        places[info.filename.removeprefix(folder)] = (start, info.file_size)
    return places


def _split(path: Path, tree: object) -> tuple[dict[str, _LazyTensor], dict[str, object]]:
    """Return the tensors of the file, and those other entries that are plain data."""
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path} holds a {type(tree).__name__}, not a dictionary of tensors.")
    entries = cast(dict[object, object], tree)
    container = next((name for name in _CONTAINERS if isinstance(entries.get(name), dict)), None)
    state = cast(dict[object, object], entries[container]) if container else entries
    tensors = {str(key): value for key, value in state.items() if isinstance(value, _LazyTensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors, neither at the top level nor in {' or '.join(_CONTAINERS)}.")
    rest = {str(key): value for key, value in entries.items() if key != container}
    return tensors, {key: value for key, value in rest.items() if _is_plain(value)}


def _is_plain(value: object) -> bool:
    """Return whether a value is made of numbers, strings and containers.

    A list may contain itself, or one part many times: deeper or larger ones than any settings count as not plain.
    """
    level, count = [value], 0
    for _ in range(_MAX_DEPTH):
        count += len(level)
        containers = [one for one in level if isinstance(one, (dict, list, tuple))]
        others = (one for one in level if not isinstance(one, (dict, list, tuple)))
        if count > _MAX_VALUES or not all(one is None or isinstance(one, (bool, int, float, str)) for one in others):
            return False
        level = [part for one in containers for part in (one.values() if isinstance(one, dict) else one)]
        if not level:
            return True
    return False
