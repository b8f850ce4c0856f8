"""Files that are written tensor by tensor: aligned, complete or absent."""

import json
import signal
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lbm_lora.checkpoint import SafetensorsWriter, TensorSpec, TorchWriter, open_checkpoint
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


TENSORS = {
    "b": torch.arange(5.0),
    "a": torch.tensor(3),
    "empty": torch.zeros(0, 2).half(),
    "odd": torch.ones(7).bfloat16(),
    "mask": torch.tensor([True, False]),
}


def write(path: Path, **options: object) -> None:
    specs = {name: TensorSpec.of(tensor) for name, tensor in TENSORS.items()}
    with TorchWriter(path, specs, **options) as writer:  # pyright: ignore[reportArgumentType]
        for name, tensor in TENSORS.items():
            writer.write(name, tensor)


def data_offsets(path: Path) -> dict[str, int]:
    """Where  each record start, from the local headers."""
    content = path.read_bytes()
    offsets: dict[str, int] = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            start = info.header_offset
            name, extra = (int.from_bytes(content[start + at : start + at + 2], "little") for at in (26, 28))
            offsets[info.filename] = start + 30 + name + extra
    return offsets


def test_every_record_is_stored_and_aligned(tmp_path: Path) -> None:
    write(tmp_path / "a.ckpt", extra={"config": {"key": "x" * 1000}})
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        names = archive.namelist()
        assert archive.read("archive/version") == b"3\n"
        assert archive.read("archive/byteorder") == b"little"
    assert names == [
        "archive/data.pkl",
        "archive/byteorder",
        *(f"archive/data/{index}" for index in range(len(TENSORS))),
        "archive/version",
        "archive/made by lbm-lora",
    ]
    offsets = data_offsets(tmp_path / "a.ckpt")
    assert {offset % 64 for offset in offsets.values()} == {0}


def test_records_in_the_long_form_of_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for tensors and files of more than 2 GB, with the limit lowered."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 12)
    write(tmp_path / "a.ckpt")
    monkeypatch.undo()
    assert {offset % 64 for offset in data_offsets(tmp_path / "a.ckpt").values()} == {0}
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["model_state_dict"]
    found = open_checkpoint(tmp_path / "a.ckpt")
    for name, tensor in TENSORS.items():
        assert torch.equal(state[name], tensor)
        assert torch.equal(found.read(name), tensor)


def test_two_containers_share_their_bytes(tmp_path: Path) -> None:
    write(tmp_path / "one.ckpt")
    write(tmp_path / "two.ckpt", containers={"model_state_dict": "", "state_dict": "model."})
    with zipfile.ZipFile(tmp_path / "one.ckpt") as one, zipfile.ZipFile(tmp_path / "two.ckpt") as two:
        assert one.namelist() == two.namelist()
    for mmap in (False, True):
        held = torch.load(tmp_path / "two.ckpt", weights_only=True, mmap=mmap)
        assert list(held["state_dict"]) == [f"model.{name}" for name in TENSORS]
        for name, tensor in TENSORS.items():
            assert torch.equal(held["state_dict"][f"model.{name}"], tensor)
            assert held["state_dict"][f"model.{name}"].data_ptr() == held["model_state_dict"][name].data_ptr()


ORDERED = {name: TensorSpec(torch.float32, (2,)) for name in "ab"}
