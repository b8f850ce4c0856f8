"""Packed files: every rank of every module, and every dense delta, with as many bits as it is worth.

    lbm_lora.index    uint8: zlib-compressed JSON, {"prefix": TEXT, "modules": {MODULE: [SHAPE, WIDTHS]}, "dense":
                      {PARAM: [SHAPE, WIDTHS]}}; WIDTHS has a digit in base 36 for each rank, one for a dense delta
    lbm_lora.data     uint8: in the order of the index, for each module its units, then the columns of `up`, then the
                      rows of `down`; for each dense delta its unit, then its values

A unit takes 3 bytes: the first 24 bits of an fp32 number after its sign. Values are whole numbers, L added to each,
most significant bit first; every column, row and dense delta starts at a new byte (see `factorize.grid`). No other
program knows these two keys, so none reads a part of the file.
"""

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Int16, UInt8
from torch import Tensor

from lbm_lora.adapter.module import Adapter, LoraModule
from lbm_lora.errors import AdapterError, InputError
from lbm_lora.factorize import (
    PACKED,
    WIDTHS,
    Counts,
    Factors,
    Grid,
    counts_of,
    down_shape,
    has_matrix_view,
    largest,
    matrix_shape,
    nearest,
    shortened,
    up_shape,
    vector_counts,
    vector_of,
)
from lbm_lora.naming import ModuleName, ParamName
from lbm_lora.plain_text import TextError, parse_json

INDEX, DATA = "lbm_lora.index", "lbm_lora.data"
UNIT_BYTES = 3

_MOST_INDEX = 16 * 2**20  # bytes of the index: names of 10^5 modules
_WIDEST = 2**24  # elements of a side
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_DROPPED = 8  # bits of an fp32 number's fraction that units never use

_Bytes = UInt8[np.ndarray, " n"]


@dataclass(frozen=True)
class Index:
    """What a packed file holds.

    Attributes:
        modules: shape of the weight and bits of each rank, by module.
        dense: shape and bits, by parameter.
    """

    prefix: str
    modules: Mapping[ModuleName, tuple[tuple[int, ...], tuple[int, ...]]]
    dense: Mapping[ParamName, tuple[tuple[int, ...], int]]

    def encoded(self) -> _Bytes:
        """Return the bytes of the index."""
        text = {
            "prefix": self.prefix,
            "modules": {name: [shape, _digits(widths)] for name, (shape, widths) in self.modules.items()},
            "dense": {name: [shape, _digits([width])] for name, (shape, width) in self.dense.items()},
        }
        return np.frombuffer(zlib.compress(json.dumps(text, separators=(",", ":")).encode(), 9), np.uint8)

    @property
    def data_bytes(self) -> int:
        """The bytes of the data."""
        modules = sum(sum(rank_bytes(shape, width) for width in widths) for shape, widths in self.modules.values())
        return modules + sum(vector_bytes(math.prod(shape), width) for shape, width in self.dense.values())


def rank_bytes(shape: tuple[int, ...], width: int) -> int:
    """Return the bytes of a rank of a weight of this shape."""
    rows, columns = matrix_shape(shape)
    return UNIT_BYTES + _row_bytes(rows, width) + _row_bytes(columns, width)


def vector_bytes(count: int, width: int) -> int:
    """Return the bytes of a dense delta of so many values."""
    return UNIT_BYTES + _row_bytes(count, width)


def index_of(adapter: Adapter) -> Index:
    """Return the index of an adapter whose modules and dense deltas all have grids.

    Raises:
        AdapterError: one of them has none.
    """
    lacking = [name for name, module in adapter.modules.items() if module.grid is None]
    lacking += [name for name in adapter.dense if name not in adapter.grids]
    if lacking:
        raise AdapterError(f"{adapter.label}: {lacking[0]} has no number of bits. Cast the LoRA to fp16.")
    return Index(
        adapter.prefix,
        {name: (module.shape, _grid_of(module).widths) for name, module in adapter.modules.items()},
        {name: (tuple(delta.shape), adapter.grids[name].widths[0]) for name, delta in adapter.dense.items()},
    )


def encode_packed(adapter: Adapter) -> dict[str, Tensor]:
    """Return the tensors of a packed file.

    Raises:
        AdapterError: a module or a dense delta has no grid, or values that are not on it.
    """
    index = index_of(adapter)
    parts: list[_Bytes] = []
    try:
        for module in adapter.modules.values():
            counts = counts_of(_plain(module.factors()), _grid_of(module))
            parts += [_units(counts.grid.unit), *_packed(counts.up.mT, counts.grid), *_packed(counts.down, counts.grid)]
        for name, delta in adapter.dense.items():
            grid = adapter.grids[name]
            parts += [_units(grid.unit), *_packed(vector_counts(delta.flatten(), grid)[None], grid)]
    except InputError as error:
        raise AdapterError(f"{adapter.label}: ", *error.args) from None
    data = np.concatenate([np.zeros(0, np.uint8), *parts])
    return {INDEX: torch.from_numpy(index.encoded().copy()), DATA: torch.from_numpy(data)}


def regridded(adapter: Adapter, given: Adapter) -> Adapter:
    """Return an adapter as a packed file stores it, with the bits of a given one.

    Args:
        adapter: differs from `given` only in its dense deltas, and in a factor for each rank, which its unit absorbs.
        given: packed.
    """
    modules = {name: _rescaled(module, given.modules[name]) for name, module in adapter.modules.items()}
    dense: dict[ParamName, Tensor] = {}
    grids: dict[ParamName, Grid] = {}
    for name, delta in adapter.dense.items():
        widths = given.grids[name].widths
        counts, unit = nearest(delta.flatten()[None], widths)
        grids[name] = Grid(widths, unit)
        dense[name] = vector_of(counts[0], grids[name]).reshape(delta.shape)
    return replace(adapter, modules=modules, dense=dense, dtype=PACKED, grids=grids)


def _rescaled(module: LoraModule, given: LoraModule) -> LoraModule:
    counts = counts_of(given.factors(), _grid_of(given))
    before, after = given.factors().up, module.factors().up
    factors = (before * after).sum(dim=0) / before.square().sum(dim=0).clamp_min(torch.finfo(torch.float32).tiny)
    unit = shortened((counts.grid.unit * factors.abs()).clamp_min(torch.finfo(torch.float32).tiny))
    signs = torch.where(factors < 0, -1, 1).to(torch.int16)
    found = Counts(counts.up * signs, counts.down, Grid(counts.grid.widths, unit)).factors()
    return replace(
        given,
        up=found.up.reshape(given.up.shape),
        down=found.down.reshape(given.down.shape),
        grid=Grid(counts.grid.widths, unit),
    )


def is_packed(keys: Mapping[str, object]) -> bool:
    """Return whether a file with these keys is packed."""
    return INDEX in keys or DATA in keys


def decode_packed(
    tensors: Mapping[str, Tensor], where: Path
) -> tuple[str, dict[ModuleName, LoraModule], dict[ParamName, Tensor], dict[ParamName, Grid]]:
    """Return prefix, lora modules, dense deltas and the grids of these.

    Raises:
        AdapterError: the file is damaged.
    """
    try:
        if set(tensors) != {INDEX, DATA} or any(tensor.dtype != torch.uint8 for tensor in tensors.values()):
            raise ValueError(f"it must hold {INDEX} and {DATA} alone, of uint8")
        index = _decoded(tensors[INDEX].numpy().tobytes())
        data = tensors[DATA].numpy()
        if len(data) != index.data_bytes:
            raise ValueError(f"its index describes {index.data_bytes:,} bytes, but it holds {len(data):,}")
        return index.prefix, *_read(index, data)
    except (ValueError, TypeError, KeyError, AttributeError, zlib.error, UnicodeDecodeError, TextError) as error:
        raise AdapterError(f"{where}: the packed LoRA is damaged: {error}. Fetch or make the file again.") from None


def _read(
    index: Index, data: _Bytes
) -> tuple[dict[ModuleName, LoraModule], dict[ParamName, Tensor], dict[ParamName, Grid]]:
    at = 0

    def take(count: int) -> _Bytes:
        nonlocal at
        at += count
        return data[at - count : at]

    def counts(length: int, widths: tuple[int, ...]) -> Int16[Tensor, "rank n"]:
        rows = [
            _unpacked(take(len(list(run)) * _row_bytes(length, width)), length, width) for width, run in groupby(widths)
        ]
        return torch.from_numpy(np.concatenate(rows))

    modules: dict[ModuleName, LoraModule] = {}
    for name, (shape, widths) in index.modules.items():
        rows, columns = matrix_shape(shape)
        grid = Grid(widths, _units_of(take(UNIT_BYTES * len(widths))))
        found = Counts(counts(rows, widths).mT, counts(columns, widths), grid).factors()
        rank = len(widths)
        down, up = found.down.reshape(down_shape(shape, rank)), found.up.reshape(up_shape(shape, rank)).contiguous()
        modules[name] = LoraModule(name, down, up, float(rank), grid)
    dense: dict[ParamName, Tensor] = {}
    grids: dict[ParamName, Grid] = {}
    for name, (shape, width) in index.dense.items():
        grids[name] = Grid((width,), _units_of(take(UNIT_BYTES)))
        dense[name] = vector_of(counts(math.prod(shape), (width,))[0], grids[name]).reshape(shape)
    return modules, dense, grids


def _decoded(compressed: bytes) -> Index:
    """Return an index from its bytes, checked."""
    unzip = zlib.decompressobj()
    text = unzip.decompress(compressed, _MOST_INDEX)
    if not unzip.eof:
        raise ValueError(f"its index is cut off, or larger than {_MOST_INDEX:,} bytes")
    found = cast(dict[str, Any], parse_json(text.decode()))
    prefix = found["prefix"]
    if type(prefix) is not str:
        raise ValueError("its prefix is not a text")
    modules = {ModuleName(name): (_shape(shape), _widths(word)) for name, (shape, word) in found["modules"].items()}
    dense = {ParamName(name): (_shape(shape), _widths(word)) for name, (shape, word) in found["dense"].items()}
    for name, (shape, _) in modules.items():
        if not has_matrix_view(shape):
            raise ValueError(f"{name} has the shape {shape}, which no lora module has")
    for name, (_, widths) in dense.items():
        if len(widths) != 1:
            raise ValueError(f"{name} has {len(widths)} widths")
    return Index(prefix, modules, {name: (shape, widths[0]) for name, (shape, widths) in dense.items()})


def _shape(found: object) -> tuple[int, ...]:
    sizes = tuple(cast(list[object], found))
    if not all(type(size) is int and 0 < size < _WIDEST for size in sizes):
        raise ValueError(f"{str(sizes)[:60]} is not a shape")
    return cast(tuple[int, ...], sizes)


def _widths(word: str) -> tuple[int, ...]:
    widths = tuple(int(digit, 36) for digit in word)
    if not widths or not set(widths) <= set(WIDTHS):
        raise ValueError(f"{word[:60]!r} has widths other than {', '.join(map(str, WIDTHS))}")
    return widths


def _digits(widths: tuple[int, ...] | list[int]) -> str:
    return "".join(_DIGITS[width] for width in widths)


def _grid_of(module: LoraModule) -> Grid:
    assert module.grid is not None
    return module.grid


def _plain(factors: Factors) -> Factors:
    return Factors(factors.up.detach(), factors.down.detach())


def _row_bytes(count: int, width: int) -> int:
    return -(-count * width // 8)


def _units(unit: Tensor) -> _Bytes:
    """Return 3 bytes for each unit."""
    whole = unit.contiguous().view(torch.int32).numpy() >> _DROPPED
    return whole.astype(">u4").view(np.uint8).reshape(-1, 4)[:, 1:].reshape(-1)


def _units_of(data: _Bytes) -> Tensor:
    whole = np.zeros((len(data) // UNIT_BYTES, 4), np.uint8)
    whole[:, 1:] = data.reshape(-1, UNIT_BYTES)
    unit = torch.from_numpy((whole.view(">u4")[:, 0].astype(np.int32) << _DROPPED).view(np.float32).copy())
    if not (torch.isfinite(unit) & (unit > 0)).all():
        raise ValueError("a unit is not above 0 and finite")
    return unit


def _packed(rows: Int16[Tensor, "rank n"], grid: Grid) -> Iterator[_Bytes]:
    """Yield the bytes of rows, each at the width of its rank."""
    start = 0
    for width, run in groupby(grid.widths):
        end = start + len(list(run))
        whole = (rows[start:end].numpy().astype(np.int32) + largest(width)).astype(np.uint16)
        bits = (whole[:, :, None] >> np.arange(width - 1, -1, -1, dtype=np.uint16)) & 1
        yield np.packbits(bits.astype(np.uint8).reshape(len(whole), -1), axis=1).reshape(-1)
        start = end


def _unpacked(data: _Bytes, length: int, width: int) -> Int16[np.ndarray, "rank length"]:
    """Invert `_packed` for ranks of one width.

    Raises:
        ValueError: a value exceeds its width.
    """
    rows = data.reshape(-1, _row_bytes(length, width))
    bits = np.unpackbits(rows, axis=1, count=length * width).reshape(len(rows), length, width)
    whole = bits.astype(np.int32) @ (1 << np.arange(width - 1, -1, -1, dtype=np.int32))
    if (whole > 2 * largest(width)).any():
        raise ValueError("a value exceeds its width")
    return (whole - largest(width)).astype(np.int16)
