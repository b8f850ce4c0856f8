"""Damaged `.safetensors` files: one line each, whatever is wrong with them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from lbm_lora.checkpoint.safetensors_file import SafetensorsFile
from lbm_lora.errors import CheckpointError

GOOD = save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3).half()}, metadata={"k": "v"})
HEADER_END = 8 + int.from_bytes(GOOD[:8], "little")


def with_header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


def error_of(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(path)
    return str(caught.value).removeprefix(f"{path}")


@pytest.mark.parametrize("content", [GOOD[:-1], GOOD[:HEADER_END]])
def test_a_file_that_is_cut_off(tmp_path: Path, content: bytes) -> None:
    assert error_of(tmp_path / "a.safetensors", content) == (
        f": the header describes {len(GOOD):,} bytes, but the file has {len(content):,}. "
        "The file is damaged or incomplete: download it again."
    )


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            b"PK\x03\x04" + bytes(60),
            " is not a safetensors file, or is truncated: its header does not fit into 64 bytes.",
        ),
        (
            with_header(b"{]"),
            " is not a safetensors file: its header is not JSON: Expecting property name enclosed in double quotes: "
            "line 1 column 2 (char 1).",
        ),
        (
            with_header(b'{"a": 1, "a": 1}'),
            " is not a safetensors file: its header repeats the key 'a'.",
        ),
        (
            with_header(b"[" * 100_000),
            " is not a safetensors file: its header nests too deeply.",
        ),
        (
            with_header({**entry(data_offsets=[0, 8]), "b": entry(data_offsets=[4, 12])["a"]}, bytes(12)),
            ": b begins at byte 4 of the data, where 8 is due: the tensors overlap. The file is damaged, or made to "
            "deceive.",
        ),
        (
            with_header({**entry(data_offsets=[0, 8]), "b": entry(data_offsets=[12, 20])["a"]}, bytes(20)),
            ": b begins at byte 12 of the data, where 8 is due: the tensors leave a hole. The file is damaged, or made "
            "to deceive.",
        ),
        (
            with_header(entry(data_offsets=[8, 16]), bytes(16)),
            ": a begins at byte 8 of the data, where 0 is due: the tensors leave a hole. The file is damaged, or made "
            "to deceive.",
        ),
        (
            with_header(entry(shape=[0, 2**63], data_offsets=[0, 0])),
            ": the header entry of a is malformed: {'dtype': 'F32', 'shape': [0, 9223372036854775808], "
            "'data_offsets': [0, 0]}.",
        ),
        (with_header([1]), " is not a safetensors file: its header is not a JSON object."),
        (with_header({"__metadata__": "x"}), ": the header's __metadata__ is malformed: 'x'."),
        (with_header({"a": 3}), ": the header entry of a is malformed: 3."),
        (with_header({"a": {}}), ": the header entry of a is malformed: {}."),
        (
            with_header(entry(dtype="Q4")),
            ": the header entry of a is malformed: {'dtype': 'Q4', 'shape': [2], 'data_offsets': [0, 8]}.",
        ),
        (
            with_header(entry(shape=["2"])),
            ": the header entry of a is malformed: {'dtype': 'F32', 'shape': ['2'], 'data_offsets': [0, 8]}.",
        ),
        (
            with_header(entry(shape=[-1, -2])),
            ": the header entry of a is malformed: {'dtype': 'F32', 'shape': [-1, -2], 'data_offsets': [0, 8]}.",
        ),
        (
            with_header(entry(data_offsets=[0, "8"])),
            ": the header entry of a is malformed: {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, '8']}.",
        ),
        (
            with_header(entry(data_offsets=[-8, 0])),
            ": the header entry of a is malformed: {'dtype': 'F32', 'shape': [2], 'data_offsets': [-8, 0]}.",
        ),
        (
            with_header(entry(data_offsets=[0, 12]), bytes(12)),
            ": a is (2,) fp32 and needs 8 bytes, but the header gives it 12.",
        ),
    ],
)
def test_a_header_that_is_not_understood(tmp_path: Path, content: bytes, text: str) -> None:
    assert error_of(tmp_path / "a.safetensors", content) == text


@settings(max_examples=200)
@given(st.integers(0, HEADER_END - 1), st.integers(0, 255))
def test_a_damaged_byte_is_one_line_or_harmless(tmp_path: Path, place: int, value: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(GOOD[:place] + bytes([value]) + GOOD[place + 1 :])
    try:
        file = SafetensorsFile(path)
    except CheckpointError:
        return
    for name, spec in file.specs.items():
        assert tuple(file.read(name).shape) == spec.shape


def test_unaligned_tensors_of_other_writers_are_copied(tmp_path: Path) -> None:
    values = torch.tensor([1.5, -2.0])
    path = tmp_path / "a.safetensors"
    header = json.dumps(entry()).encode()
    header = header.ljust(-(-len(header) // 8) * 8 + 3)  # the data start at an odd place
    path.write_bytes(with_header(header, values.numpy().tobytes()))
    assert torch.equal(SafetensorsFile(path).read("a"), values)
