"""Packed files: every rank of every module, and every dense delta, with as many bits as it is worth.

    lbm_lora.index    uint8: zlib-compressed JSON, {"prefix": TEXT, "modules": {MODULE: [SHAPE, WIDTHS]}, "dense":
                      {PARAM: [SHAPE, WIDTHS]}}; WIDTHS has a digit in base 36 for each rank, one for a dense delta
    lbm_lora.data     uint8: in the order of the index, the units of each module; the unit of each dense delta, and
                      the values of each vector; then all other values, one stream for each width:
                      for each module the columns of `up`, then the rows of `down`; then dense deltas of matrices

A unit takes 3 bytes: the first 24 bits of an fp32 number after its sign. A value is a whole number, a count (see
`factorize.grid`). Those of vectors are stored with L added, most significant bit first. They are not coded, so that a
file keeps its size when they change. No other program knows these two keys, so none reads a part of the file.

A stream of other counts is compressed by zlib, with Huffman codes alone: frequent counts take fewer bits. Each of its
bytes before that holds 5 counts of width 2 (as digits in base 3), 2 counts of width 3 or 4 (in base 7 or 15), or the
highest 8 bits of one count of a larger width. Behind it are the other bits of counts of more than 8, uncompressed.
"""

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int16, UInt8, UInt16
from torch import Tensor

from lbm_lora.adapter.module import Adapter, LoraModule
from lbm_lora.adapter.packed_index import UNIT_BYTES, Index, decode_index, is_coded, row_bytes
from lbm_lora.errors import AdapterError, InputError
from lbm_lora.factorize import (
    PACKED,
    WIDTHS,
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
from lbm_lora.text import TextError

INDEX, DATA = "lbm_lora.index", "lbm_lora.data"

_DROPPED = 8  # bits of an fp32 number's fraction that units never use
_PER_BYTE = {2: 5, 3: 2, 4: 2}
_CODED = 8  # bits of a count that are coded
_CHUNK = 40 * 2**19  # counts that are turned into bytes at once: whole bytes at any width

_Bytes = UInt8[np.ndarray, " n"]


def index_of(adapter: Adapter) -> Index:
    """Return the index of an adapter whose modules and dense deltas all have grids."""
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
    """Return the tensors of a packed file."""
    index = index_of(adapter)
    parts: list[bytes] = []
    counted: dict[int, list[Int16[np.ndarray, ...]]] = {width: [] for width in WIDTHS}
    try:
        for module in adapter.modules.values():
            factors = module.factors()
            counts = counts_of(Factors(factors.up.detach(), factors.down.detach()), _grid_of(module))
            parts.append(_units(counts.grid.unit).tobytes())
            for rows in (counts.up.mT, counts.down):
                for width, run in _runs(counts.grid.widths):
                    counted[width].append(rows[run].numpy())
        for name, delta in adapter.dense.items():
            grid = adapter.grids[name]
            values = vector_counts(delta.flatten(), grid).numpy()
            parts.append(_units(grid.unit).tobytes())
            if is_coded(tuple(delta.shape)):
                counted[grid.widths[0]].append(values)
            else:
                width = grid.widths[0]
                parts.append(pack_bits((values.astype(np.int32) + largest(width)).astype(np.uint16), width).tobytes())
    except InputError as error:
        raise AdapterError(f"{adapter.label}: ", *error.args) from None
    parts += [encode_counts(width, found) for width, found in counted.items() if found]
    data = torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8) if parts else torch.zeros(0).byte()
    return {INDEX: torch.from_numpy(index.encoded().copy()), DATA: data}


def regridded(adapter: Adapter, given: Adapter) -> Adapter:
    """Return an adapter as a packed file stores it, with the bits of a given one.

    Args:
        adapter: differs from `given` only in its dense deltas, and in a factor for each rank, which its unit absorbs.
    """
    modules = {name: _rescaled(module, given.modules[name]) for name, module in adapter.modules.items()}
    dense: dict[ParamName, Tensor] = {}
    grids: dict[ParamName, Grid] = {}
    for name, delta in adapter.dense.items():
        if torch.equal(delta, given.dense[name]):
            dense[name], grids[name] = delta, given.grids[name]
            continue
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
    return INDEX in keys or DATA in keys


def decode_packed(
    tensors: Mapping[str, Tensor], where: Path
) -> tuple[str, dict[ModuleName, LoraModule], dict[ParamName, Tensor], dict[ParamName, Grid]]:
    """Return prefix, lora modules, dense deltas and the grids of these."""
    try:
        if set(tensors) != {INDEX, DATA} or any(tensor.dtype != torch.uint8 for tensor in tensors.values()):
            raise ValueError(f"it must hold {INDEX} and {DATA} alone, of uint8")
        index = decode_index(tensors[INDEX].numpy().tobytes())
        return index.prefix, *_read(index, tensors[DATA].numpy())
    except (ValueError, TypeError, KeyError, AttributeError, zlib.error, UnicodeDecodeError, TextError) as error:
        raise AdapterError(f"{where}: the packed LoRA is damaged: {error}. Fetch or make the file again.") from None


def _read(
    index: Index, data: _Bytes
) -> tuple[dict[ModuleName, LoraModule], dict[ParamName, Tensor], dict[ParamName, Grid]]:
    at = 0

    def take(count: int) -> _Bytes:
        nonlocal at
        at += count
        if at > len(data):
            raise ValueError("its data is cut off")
        return data[at - count : at]

    units = {name: _units_of(take(UNIT_BYTES * len(widths))) for name, (_, widths) in index.modules.items()}
    vectors: dict[ParamName, Int16[Tensor, " n"]] = {}
    grids: dict[ParamName, Grid] = {}
    for name, (shape, width) in index.dense.items():
        grids[name] = Grid((width,), _units_of(take(UNIT_BYTES)))
        if not is_coded(shape):
            count = math.prod(shape)
            vectors[name] = _unpacked(take(row_bytes(count, width)), count, width)
    counts = _counts(index, data[at:].tobytes())
    modules: dict[ModuleName, LoraModule] = {}
    for name, (shape, widths) in index.modules.items():
        grid = Grid(widths, units[name])
        up, down = (next(counts) for _ in range(2))
        found = Counts(torch.from_numpy(up).mT, torch.from_numpy(down), grid).factors()
        rank = len(widths)
        first, second = found.down.reshape(down_shape(shape, rank)), found.up.reshape(up_shape(shape, rank))
        modules[name] = LoraModule(name, first, second.contiguous(), float(rank), grid)
    dense: dict[ParamName, Tensor] = {}
    for name, (shape, _) in index.dense.items():
        values = torch.from_numpy(next(counts)[0]) if is_coded(shape) else vectors[name]
        dense[name] = vector_of(values, grids[name]).reshape(shape)
    return modules, dense, grids


def _counts(index: Index, data: bytes) -> Iterator[Int16[np.ndarray, "rank n"]]:
    """Yield all counts that are coded: of both factors of each module, each rank in a row, then of dense deltas."""
    rows = [(widths, length) for shape, widths in index.modules.values() for length in matrix_shape(shape)]
    rows += [((width,), math.prod(shape)) for shape, width in index.dense.values() if is_coded(shape)]
    totals: dict[int, int] = dict.fromkeys(WIDTHS, 0)
    for widths, length in rows:
        for width in widths:
            totals[width] += length
    streams: dict[int, Int16[np.ndarray, " n"]] = {}
    for width, total in totals.items():
        if total:
            streams[width], data = decode_counts(width, total, data)
    if data:
        raise ValueError(f"{len(data):,} bytes follow its data")
    places: dict[int, int] = dict.fromkeys(WIDTHS, 0)
    for widths, length in rows:
        found = np.empty((len(widths), length), np.int16)
        for width, run in _runs(widths):
            part = found[run]
            part[:] = streams[width][places[width] : places[width] + part.size].reshape(part.shape)
            places[width] += part.size
        yield found


def _runs(widths: tuple[int, ...]) -> Iterator[tuple[int, slice]]:
    start = 0
    for width, run in groupby(widths):
        end = start + len(list(run))
        yield width, slice(start, end)
        start = end


def _grid_of(module: LoraModule) -> Grid:
    assert module.grid is not None
    return module.grid


def _units(unit: Tensor) -> _Bytes:
    whole = unit.contiguous().view(torch.int32).numpy() >> _DROPPED
    return whole.astype(">u4").view(np.uint8).reshape(-1, 4)[:, 1:].reshape(-1)


def _units_of(data: _Bytes) -> Tensor:
    whole = np.zeros((len(data) // UNIT_BYTES, 4), np.uint8)
    whole[:, 1:] = data.reshape(-1, UNIT_BYTES)
    unit = torch.from_numpy((whole.view(">u4")[:, 0].astype(np.int32) << _DROPPED).view(np.float32).copy())
    if not (torch.isfinite(unit) & (unit > 0)).all():
        raise ValueError("a unit is not above 0 and finite")
    return unit


def _unpacked(data: _Bytes, count: int, width: int) -> Int16[Tensor, " count"]:
    whole = unpack_bits(data, count, width).astype(np.int32)
    if (whole > 2 * largest(width)).any():
        raise ValueError("a value exceeds its width")
    return torch.from_numpy((whole - largest(width)).astype(np.int16))


def encode_counts(width: int, parts: Sequence[Int16[np.ndarray, "..."]]) -> bytes:
    """Return the stream of counts of one width, in the order of the parts."""
    counts = np.concatenate([part.reshape(-1) for part in parts])
    coder = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    coded: list[bytes] = []
    rest: list[bytes] = []
    for start in range(0, len(counts), _CHUNK):
        whole = (counts[start : start + _CHUNK] + largest(width)).astype(np.uint16)
        coded.append(coder.compress(_grouped(whole >> _low_bits(width), width).tobytes()))
        rest.append(pack_bits(whole, _low_bits(width)).tobytes())
    return b"".join((*coded, coder.flush(), *rest))


def decode_counts(width: int, count: int, data: bytes) -> tuple[Int16[np.ndarray, " n"], bytes]:
    """Return the counts at the beginning of the data, and what follows them."""
    per_byte, low = _PER_BYTE.get(width, 1), _low_bits(width)
    coder = zlib.decompressobj()
    nbytes = -(-count // per_byte)
    if nbytes > 8 * len(data):  # a code has a bit or more
        raise ValueError(f"{len(data):,} bytes cannot hold {count:,} counts")
    coded = coder.decompress(data, nbytes + 1)
    if len(coded) != nbytes or not coder.eof:
        raise ValueError(f"its counts of {width} bits are cut off, or not {count:,}")
    rest, at = coder.unused_data, 0
    whole = np.empty(count, np.uint16)
    for start in range(0, count, _CHUNK):
        part = whole[start : start + _CHUNK]
        high = np.frombuffer(coded, np.uint8)[start // per_byte : -(-(start + len(part)) // per_byte)]
        size = -(-len(part) * low // 8)
        if at + size > len(rest):
            raise ValueError(f"its counts of {width} bits are cut off")
        part[:] = _ungrouped(high, width)[: len(part)].astype(np.uint16) << low
        part |= unpack_bits(np.frombuffer(rest, np.uint8)[at : at + size], len(part), low)
        at += size
    if count and whole.max() > 2 * largest(width):
        raise ValueError("a value exceeds its width")
    return (whole.astype(np.int32) - largest(width)).astype(np.int16), rest[at:]


def _low_bits(width: int) -> int:
    return max(0, width - _CODED)


def _grouped(whole: UInt16[np.ndarray, " n"], width: int) -> UInt8[np.ndarray, " m"]:
    per_byte, base = _PER_BYTE.get(width, 1), 2 * largest(width) + 1
    digits = np.zeros(-(-len(whole) // per_byte) * per_byte, np.uint8)
    digits[: len(whole)] = whole
    found = digits[per_byte - 1 :: per_byte].copy()
    for place in range(per_byte - 2, -1, -1):
        found = found * np.uint8(base) + digits[place::per_byte]
    return found


def _ungrouped(data: UInt8[np.ndarray, " m"], width: int) -> UInt8[np.ndarray, " n"]:
    per_byte, base = _PER_BYTE.get(width, 1), 2 * largest(width) + 1
    if per_byte == 1:
        return data
    digits = np.empty((len(data), per_byte), np.uint8)
    for place in range(per_byte):
        data, digits[:, place] = np.divmod(data, np.uint8(base))
    if data.any():
        raise ValueError("a value exceeds its width")
    return digits.reshape(-1)


def pack_bits(whole: UInt16[np.ndarray, " n"], width: int) -> UInt8[np.ndarray, " m"]:
    """Return the lowest bits of each number, most significant first."""
    bits = (whole[:, None] >> np.arange(width - 1, -1, -1, dtype=np.uint16)) & 1
    return np.packbits(bits.astype(np.uint8).reshape(-1))


def unpack_bits(data: UInt8[np.ndarray, " m"], count: int, width: int) -> UInt16[np.ndarray, " n"]:
    """Invert `pack_bits`."""
    bits = np.unpackbits(data, count=count * width).reshape(count, width)
    return (bits.astype(np.int32) @ (1 << np.arange(width - 1, -1, -1, dtype=np.int32))).astype(np.uint16)
