"""Write a `.safetensors` file atomically, tensor by tensor, in constant memory.

Room for the header is reserved at the front, since the metadata, and which of the announced tensors are written, may
be known only at the end. The header is padded with spaces, as the format allows.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import torch

from lbm_lora.checkpoint.spec import TensorSpec
from lbm_lora.files import atomic_path

_ALIGNMENT = 8
_LENGTH_BYTES = 8
_FARTHEST = 9_999_999_999


class SafetensorsWriter:
    """Context manager: `write` the announced tensors, set `metadata`, exit.

    Args:
        path: the file to write.
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
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self._path = Path(path)
        self._specs = dict(specs)
        self._entries: dict[str, tuple[TensorSpec, int]] = {}
        self._late: list[tuple[str, torch.Tensor]] = []
        self._position = 0
        end = sum(spec.nbytes for spec in specs.values())
        worst = _header({name: (spec, end) for name, spec in specs.items()}, self.metadata)
        self._room = _aligned(len(worst) + metadata_room)
        self._stack = ExitStack()

    def __enter__(self) -> "SafetensorsWriter":
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self._path))
            self._file = stack.enter_context(temporary.open("wb"))
            self._file.seek(_LENGTH_BYTES + self._room)
            self._stack = stack.pop_all()
        return self

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
        """Append the held-back tensors, widest items first, and fill in the header."""
        for name, tensor in sorted(self._late, key=lambda row: -row[1].dtype.itemsize):
            self._append(name, tensor)
        header = _header(self._entries, self.metadata)
        if len(header) > self._room:
            raise AssertionError(f"the header of {self._path} needs {len(header)} bytes, {self._room} were reserved")
        self._file.seek(0)
        self._file.write(self._room.to_bytes(_LENGTH_BYTES, "little") + header.ljust(self._room))


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor in C order, without a copy if it is already contiguous."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def entry_bytes(name: str, spec: TensorSpec) -> int:
    """Return the most bytes that a tensor takes in the header: offsets are counted with the digits of a 10 GB file."""
    return len(_header({name: (spec, _FARTHEST)}, {})) - len("{}") + len(",")


def _header(entries: Mapping[str, tuple[TensorSpec, int]], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, (spec, offset) in entries.items():
        header[name] = {"dtype": spec.code, "shape": list(spec.shape), "data_offsets": [offset, offset + spec.nbytes]}
    # a file name in another encoding may be among the metadata; it is for people
    return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
