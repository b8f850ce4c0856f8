"""Counts of packed files as bytes: those of one width in one stream, of which frequent ones take fewer bits.

A stream is compressed by zlib, with Huffman codes alone. Each of its bytes before that holds 5 counts of width 2 (as
digits in base 3), 2 counts of width 3 or 4 (in base 7 or 15), or the highest 8 bits of one count of a larger width.
Behind it are the other bits of counts of more than 8, uncompressed.
"""

import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int16, UInt8, UInt16

from lbm_lora.factorize import largest

_PER_BYTE = {2: 5, 3: 2, 4: 2}
_CODED = 8  # bits of a count that are coded
_CHUNK = 40 * 2**19  # counts that are turned into bytes at once: whole bytes at any width


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
    """Return a byte for each group of counts; the last group is filled with zeros."""
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
