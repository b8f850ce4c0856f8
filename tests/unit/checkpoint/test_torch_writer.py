"""The layout of a written `.ckpt`, taken apart by hand; torch itself reads it in tests/interop/test_torch_files.py."""

import zipfile
from pathlib import Path

import pytest
import torch

from lbm_lora.checkpoint import TensorSpec, TorchWriter, open_checkpoint

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


SPECS = {name: TensorSpec(torch.float32, (2,)) for name in "ab"}
