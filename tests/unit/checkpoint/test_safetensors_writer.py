"""The layout of a written `.safetensors` file, taken apart by hand; the reference reader is in tests/interop."""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lbm_lora.checkpoint import SafetensorsWriter, TensorSpec, open_checkpoint
from lbm_lora.errors import CheckpointError

DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int16,
    torch.uint8,
    torch.bool,
]
SPECS = st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3).map(tuple)), max_size=8)


def header_of(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header, where the data start, and the file's size."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), 8 + length, len(data)


def write_zeros(path: Path, specs: Mapping[str, TensorSpec], names: list[str], **options: Any) -> None:
    with SafetensorsWriter(path, specs, **options) as writer:
        for name in names:
            writer.write(name, torch.zeros(specs[name].shape, dtype=specs[name].dtype))


@given(SPECS, st.data())
def test_every_tensor_is_aligned_and_there_are_no_holes(
    tmp_path: Path, specs: list[tuple[torch.dtype, tuple[int, ...]]], data: Any
) -> None:
    named = {f"t{index}": TensorSpec(*spec) for index, spec in enumerate(specs)}
    written = data.draw(st.lists(st.sampled_from(list(named)), unique=True)) if named else []
    write_zeros(tmp_path / "a.safetensors", named, written)
    header, start, size = header_of(tmp_path / "a.safetensors")
    assert set(header) == set(written)
    assert start % 8 == 0
    end = 0
    for name, entry in sorted(header.items(), key=lambda row: row[1]["data_offsets"]):
        begin, stop = entry["data_offsets"]
        assert begin == end
        assert stop - begin == named[name].nbytes
        assert (start + begin) % named[name].dtype.itemsize == 0
        end = stop
    assert start + end == size


def test_what_is_announced_and_not_written_is_not_in_the_file(tmp_path: Path) -> None:
    specs = {name: TensorSpec(torch.float32, (4,)) for name in "abc"}
    write_zeros(tmp_path / "a.safetensors", specs, ["c", "a"])
    with open_checkpoint(tmp_path / "a.safetensors") as found:
        assert list(found.specs) == ["c", "a"]
        with pytest.raises(CheckpointError, match=r"^b is not in "):
            found.read("b")


def test_metadata_may_come_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    specs = {"a": TensorSpec(torch.float32, (4,))}
    with SafetensorsWriter(path, specs, metadata={"k": "early"}, metadata_room=64) as writer:
        writer.write("a", torch.ones(4))
        writer.metadata = {"k": "late", "Größe": '∑ \U0001f600 " \\ \n'}
    assert header_of(path)[0]["__metadata__"] == {"k": "late", "Größe": '∑ \U0001f600 " \\ \n'}
    assert open_checkpoint(path).metadata == {"k": "late", "Größe": '∑ \U0001f600 " \\ \n'}


CHILD = """
import sys
import torch
from pathlib import Path
from lbm_lora.checkpoint import SafetensorsWriter, TensorSpec, TorchWriter

path = Path(sys.argv[1])
kind = SafetensorsWriter if path.suffix == ".safetensors" else TorchWriter
with kind(path, {name: TensorSpec(torch.float32, (1000,)) for name in "ab"}) as writer:
    writer.write("a", torch.ones(1000))
    print("half", flush=True)
    sys.stdin.read()
"""


@pytest.mark.faults
@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt"])
def test_a_killed_writer_leaves_the_old_file_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"half\n"
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    assert path.read_bytes() == b"old"
