"""Packed files: every rank of every module, and every dense delta, with as many bits as it is worth.

    lbm_lora.index    uint8: zlib-compressed JSON, {"prefix": TEXT, "modules": {MODULE: [SHAPE, WIDTHS]}, "dense":
                      {PARAM: [SHAPE, WIDTHS]}}; WIDTHS has a digit in base 36 for each rank, one for a dense delta
    lbm_lora.data     uint8: in the order of the index, for each module its units, then the columns of `up`, then the
                      rows of `down`; for each dense delta its unit, then its values

A unit takes 3 bytes: the first 24 bits of an fp32 number after its sign. Values are whole numbers, L added to each,
most significant bit first; every column, row and dense delta starts at a new byte (see `factorize.grid`). No other
program knows these two keys, so none reads a part of the file.
"""

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int16, UInt8
from torch import Tensor

from lbm_lora.adapter.module import Adapter, LoraModule
from lbm_lora.adapter.packed_index import UNIT_BYTES, Index, decode_index, row_bytes
from lbm_lora.errors import AdapterError, InputError
from lbm_lora.factorize import (
    PACKED,
    Counts,
    Factors,
    Grid,
    counts_of,
    down_shape,
    largest,
    matrix_shape,
    nearest,
    shortened,
    up_shape,
    vector_counts,
    vector_of,
)
from lbm_lora.naming import ModuleName, ParamName
from lbm_lora.plain_text import TextError

INDEX, DATA = "lbm_lora.index", "lbm_lora.data"

_DROPPED = 8  # bits of an fp32 number's fraction that units never use

_Bytes = UInt8[np.ndarray, " n"]


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
        index = decode_index(tensors[INDEX].numpy().tobytes())
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
            _unpacked(take(len(list(run)) * row_bytes(length, width)), length, width) for width, run in groupby(widths)
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


def _grid_of(module: LoraModule) -> Grid:
    assert module.grid is not None
    return module.grid


def _plain(factors: Factors) -> Factors:
    return Factors(factors.up.detach(), factors.down.detach())


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
    rows = data.reshape(-1, row_bytes(length, width))
    bits = np.unpackbits(rows, axis=1, count=length * width).reshape(len(rows), length, width)
    whole = bits.astype(np.int32) @ (1 << np.arange(width - 1, -1, -1, dtype=np.int32))
    if (whole > 2 * largest(width)).any():
        raise ValueError("a value exceeds its width")
    return (whole - largest(width)).astype(np.int16)
