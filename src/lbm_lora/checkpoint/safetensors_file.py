"""Read a `.safetensors` file by tensor name through a private memory map.

The header is checked before any data is read. Tensors are views of the map: they take no anonymous memory until they
are written to, and they stay valid after the reader is closed.
"""

import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import torch

from lbm_lora.checkpoint.spec import SAFETENSORS_DTYPES, TensorSpec
from lbm_lora.errors import CheckpointError
from lbm_lora.plain_text import TextError, parse_json

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # limit of the reference implementation
_TOO_LARGE = 2**53  # sizes and offsets: beyond, JSON readers disagree about integers


class SafetensorsFile:
    """Read-only view of one file: `specs` in the order of the data, `metadata`, and `read`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            size = path.stat().st_size
            header = _read_header(path, file.read(_LENGTH_BYTES), size, file.read)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._start = _LENGTH_BYTES + int.from_bytes(self._map[:_LENGTH_BYTES], "little")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict):
            raise CheckpointError(f"{path}: the header's __metadata__ is malformed: {repr(metadata)[:200]}.")
        self.metadata: Mapping[str, str] = {str(k): str(v) for k, v in cast(dict[str, str], metadata).items()}
        entries = [(name, *_entry(path, name, entry)) for name, entry in header.items()]
        entries.sort(key=lambda row: row[2])
        self.specs: Mapping[str, TensorSpec] = {name: spec for name, spec, _ in entries}
        self._offsets = {name: offset for name, _, offset in entries}
        end = 0
        for name, spec, offset in entries:
            if offset != end:
                raise CheckpointError(
                    f"{path}: {name} begins at byte {offset:,} of the data, where {end:,} is due: the tensors "
                    f"{'overlap' if offset < end else 'leave a hole'}. The file is damaged, or made to deceive."
                )
            end += spec.nbytes
        if self._start + end != size:
            raise CheckpointError(
                f"{path}: the header describes {self._start + end:,} bytes, but the file has {size:,}. "
                "The file is damaged or incomplete: download it again."
            )

    def read(self, name: str) -> torch.Tensor:
        spec = self.specs[name]
        if spec.numel == 0:
            return torch.empty(spec.shape, dtype=spec.dtype)
        offset = self._start + self._offsets[name]
        if offset % spec.dtype.itemsize:  # torch needs a copy of a tensor that another writer left unaligned
            data = bytearray(self._map[offset : offset + spec.nbytes])
            return torch.frombuffer(data, dtype=spec.dtype).reshape(spec.shape)
        flat = torch.frombuffer(self._map, dtype=spec.dtype, count=spec.numel, offset=offset)
        return flat.reshape(spec.shape)


def _read_header(path: Path, length: bytes, size: int, read: Callable[[int], bytes]) -> dict[str, object]:
    """Return the JSON header, checked for length and form."""
    count = int.from_bytes(length, "little")
    if len(length) < _LENGTH_BYTES or count > min(size - _LENGTH_BYTES, _MAX_HEADER_BYTES):
        raise CheckpointError(
            f"{path} is not a safetensors file, or is truncated: its header does not fit into {size:,} bytes."
        )
    try:
        header = parse_json(read(count))
    except TextError as error:
        raise CheckpointError(f"{path} is not a safetensors file: its header {error}.") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is not a safetensors file: its header is not a JSON object.")
    return cast(dict[str, object], header)


def _entry(path: Path, name: str, entry: object) -> tuple[TensorSpec, int]:
    """Return one header entry as (spec, offset from the start of the data)."""
    try:
        fields = cast(dict[str, object], entry)
        code, shape = cast(str, fields["dtype"]), cast(list[int], fields["shape"])
        begin, end = cast(list[int], fields["data_offsets"])
        spec = TensorSpec(dtype=SAFETENSORS_DTYPES[code], shape=tuple(shape))
        if not all(type(number) is int and 0 <= number < _TOO_LARGE for number in (begin, end, *shape)):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path}: the header entry of {name} is malformed: {repr(entry)[:200]}.") from None
    if end - begin != spec.nbytes:
        raise CheckpointError(
            f"{path}: {name} is {spec} and needs {spec.nbytes:,} bytes, but the header gives it {end - begin:,}."
        )
    return spec, begin
