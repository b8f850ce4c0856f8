"""The layout of a written `.ckpt`, taken apart by hand; torch itself reads it in tests/interop/test_torch_files.py."""

import zipfile
from pathlib import Path

import pytest
import torch

from lbm_lora.checkpoint import TensorSpec, TorchWriter, open_checkpoint
from lbm_lora.errors import CheckpointError

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


@pytest.mark.parametrize(
    "containers", [{"model_state_dict": ""}, {"state_dict": ""}, {"model_state_dict": "", "state_dict": "model."}]
)
def test_our_reader_gives_it_back(tmp_path: Path, containers: dict[str, str]) -> None:
    extra = {"config": {"unet": [1, 2.5, None, True]}, "note": "Größe"}
    write(tmp_path / "a.ckpt", extra=extra, containers=containers)
    found = open_checkpoint(tmp_path / "a.ckpt")
    assert list(found.specs) == list(TENSORS)
    assert found.extra == extra
    for name, tensor in TENSORS.items():
        assert found.read(name).dtype == tensor.dtype
        assert torch.equal(found.read(name), tensor)


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


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.ckpt", extra={"config": {"b": 1, "a": [2]}})
    assert (tmp_path / "a.ckpt").read_bytes() == (tmp_path / "b.ckpt").read_bytes()


def test_an_extra_entry_does_not_replace_the_tensors(tmp_path: Path) -> None:
    write(tmp_path / "a.ckpt", extra={"model_state_dict": {}, "state_dict": {"x": 1}})
    assert list(open_checkpoint(tmp_path / "a.ckpt").specs) == list(TENSORS)


SPECS = {name: TensorSpec(torch.float32, (2,)) for name in "ab"}


def test_tensors_that_were_not_written_are_a_defect_of_the_caller(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"old")
    with pytest.raises(AssertionError, match=r"^1 announced tensors of .*a\.ckpt were not written$"):  # noqa: SIM117
        with TorchWriter(path, SPECS) as writer:
            writer.write("a", torch.ones(2))
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("name", ["b", "c"])
def test_another_order_is_a_defect_of_the_caller(tmp_path: Path, name: str) -> None:
    with pytest.raises((AssertionError, KeyError)), TorchWriter(tmp_path / "a.ckpt", SPECS) as writer:
        writer.write(name, torch.ones(2))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("tensor", [torch.ones(3), torch.ones(2).half()])
def test_another_tensor_is_a_defect_of_the_caller(tmp_path: Path, tensor: torch.Tensor) -> None:
    with pytest.raises(AssertionError, match=r"^announced \['a'\] \(2,\) fp32, written a "):  # noqa: SIM117
        with TorchWriter(tmp_path / "a.ckpt", SPECS) as writer:
            writer.write("a", tensor)
    assert not any(tmp_path.iterdir())


def test_a_dtype_that_the_format_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        TorchWriter(tmp_path / "a.ckpt", {"x": TensorSpec(torch.float8_e4m3fn, (2,))})
    assert str(caught.value) == "x: float8_e4m3fn cannot be stored in a .ckpt. Cast it first."
