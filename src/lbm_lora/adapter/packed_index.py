"""Index of a packed file: what it holds, in its order, and the bytes that this takes. See `packed`."""

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from jaxtyping import UInt8

from lbm_lora.factorize import WIDTHS, has_matrix_view, matrix_shape
from lbm_lora.naming import DENOISER_PREFIX, ModuleName, ParamName
from lbm_lora.plain_text import parse_json

UNIT_BYTES = 3

CODED_BITS = {2: 1.575, 3: 2.68, 4: 3.62, 5: 4.57, 6: 5.53, 8: 7.48, 10: 9.47, 12: 11.47, 16: 15.5}
"""Bits that a count of each width takes on average once it is coded (see `packed`): those of LoRAs of the mini
model. The widest ones are a bound."""

_MOST_INDEX = 16 * 2**20  # bytes of the index: names of 10^5 modules
_WIDEST = 2**24  # elements of a side
_MOST_DIMENSIONS = 8
_LONGEST = 1000  # characters of a name
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Index:
    """Contents of a packed file.

    Attributes:
        modules: shape of the weight and bits of each rank, by module.
        dense: shape and bits, by parameter.
    """

    prefix: str
    modules: Mapping[ModuleName, tuple[tuple[int, ...], tuple[int, ...]]]
    dense: Mapping[ParamName, tuple[tuple[int, ...], int]]

    def encoded(self) -> UInt8[np.ndarray, " n"]:
        """Return the bytes of the index."""
        text = {
            "prefix": self.prefix,
            "modules": {name: [shape, _digits(widths)] for name, (shape, widths) in self.modules.items()},
            "dense": {name: [shape, _digits([width])] for name, (shape, width) in self.dense.items()},
        }
        return np.frombuffer(zlib.compress(json.dumps(text, separators=(",", ":")).encode(), 9), np.uint8)

    def expected_bytes(self, more: float = 1.0) -> int:
        """Return the expected bytes of the data; see `rank_bytes`."""
        modules = sum(
            sum(rank_bytes(shape, width, more) for width in widths) for shape, widths in self.modules.values()
        )
        return modules + sum(dense_bytes(shape, width, more) for shape, width in self.dense.values())


def rank_bytes(shape: tuple[int, ...], width: int, more: float = 1.0) -> int:
    """Return the expected bytes of a rank of a weight of this shape; those of a file are known when it is written.

    Args:
        more: factor of the expected bits.
    """
    return UNIT_BYTES + math.ceil(sum(matrix_shape(shape)) * more * CODED_BITS[width] / 8)


def dense_bytes(shape: tuple[int, ...], width: int, more: float = 1.0) -> int:
    """Return the expected bytes of a dense delta; those of a vector are exact."""
    count = math.prod(shape)
    coded = math.ceil(count * more * CODED_BITS[width] / 8) if is_coded(shape) else row_bytes(count, width)
    return UNIT_BYTES + coded


def is_coded(shape: tuple[int, ...]) -> bool:
    """Return whether the values of a dense delta are coded: vectors are not, so that a refit keeps a file's size."""
    return len(shape) > 1


def decode_index(compressed: bytes) -> Index:
    """Return an index from its bytes, checked."""
    unzip = zlib.decompressobj()
    text = unzip.decompress(compressed, _MOST_INDEX)
    if not unzip.eof:
        raise ValueError(f"its index is cut off, or larger than {_MOST_INDEX:,} bytes")
    if unzip.unused_data:
        raise ValueError("something follows its index")
    found = cast(dict[str, Any], parse_json(text.decode()))
    prefix = found["prefix"]
    if prefix not in ("", DENOISER_PREFIX):
        raise ValueError(f"its prefix is {str(prefix)[:60]!r}")
    for name in (*found["modules"], *found["dense"]):
        if len(name) > _LONGEST or not name.isprintable():
            raise ValueError(f"a name is longer than {_LONGEST:,} characters, or not printable: {name[:60]!a}")
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
    if not 0 < len(sizes) <= _MOST_DIMENSIONS:
        raise ValueError(f"a shape has {len(sizes):,} dimensions; the limit is {_MOST_DIMENSIONS}")
    if not all(type(size) is int and 0 < size < _WIDEST for size in sizes):
        raise ValueError(f"{str(sizes)[:60]} is not a shape")
    return cast(tuple[int, ...], sizes)


def _widths(word: str) -> tuple[int, ...]:
    widths = tuple(map(_DIGITS.index, word))
    if not widths or not set(widths) <= set(WIDTHS):
        raise ValueError(f"{word[:60]!r} has widths other than {', '.join(map(str, WIDTHS))}")
    return widths


def _digits(widths: tuple[int, ...] | list[int]) -> str:
    return "".join(_DIGITS[width] for width in widths)


def row_bytes(count: int, width: int) -> int:
    return -(-count * width // 8)
