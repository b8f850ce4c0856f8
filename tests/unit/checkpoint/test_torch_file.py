"""Files of `torch.save`: nothing in them runs, and what is wrong with them is said in one line.

Their good forms are in tests/interop/test_torch_files.py.
"""

import io
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import CheckpointError

STATE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3).bfloat16()}


def saved(value: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def rewritten(content: bytes, change: Callable[[str, bytes], bytes | None], compression: int = 0) -> bytes:
    """The archive with each record changed, or left out where `change` gives None."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(buffer, "w", compression) as target:
        for name in source.namelist():
            data = change(name, source.read(name))
            if data is not None:
                target.writestr(name, data)
    return buffer.getvalue()


def read_all(path: Path) -> None:
    with open_checkpoint(path) as found:
        for key in found.specs:
            found.read(key)


def error_of(path: Path, content: bytes) -> str:
    """What opening the file and reading all of it raises, without the path in front."""
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_all(path)
    return str(caught.value).removeprefix(str(path))


class Runs:
    """Runs a shell command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)  # pyright: ignore[reportDeprecated]


@pytest.mark.parametrize("where", ["hyper_parameters", "callbacks", "state_dict"])
def test_a_file_cannot_run_code(tmp_path: Path, where: str) -> None:
    proof = tmp_path / "proof"
    tree: dict[str, Any] = {"state_dict": dict(STATE), "hyper_parameters": {}, "callbacks": {}}
    tree[where]["x"] = Runs(f"touch {proof}")
    path = tmp_path / "a.ckpt"
    path.write_bytes(saved(tree))
    torch.load(path, weights_only=False)
    assert proof.exists()  # the file would run it
    proof.unlink()
    with open_checkpoint(path) as found:
        for key, tensor in STATE.items():
            assert torch.equal(found.read(key), tensor)
        assert list(found.specs) == list(STATE)
        assert "x" not in repr(found.extra.get(where, {}))
    assert not proof.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_no_protocol_of_pickle_runs_code(tmp_path: Path, protocol: int) -> None:
    proof = tmp_path / "proof"
    evil = pickle.dumps({"state_dict": Runs(f"touch {proof}")}, protocol=protocol)
    text = error_of(tmp_path / "a.ckpt", rewritten(saved(STATE), lambda n, d: evil if n.endswith("data.pkl") else d))
    assert text == " holds no tensors, neither at the top level nor in model_state_dict or state_dict."
    assert not proof.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cposix\nsystem\n(S'touch %s'\ntR.",
        b"(S'touch %s'\niposix\nsystem\n.",
        b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(S'os'\ntRS'system'\ntR(S'touch %s'\ntR.",
        b"cos.path\nos.system\n(S'touch %s'\ntR.",
        b"\x80\x04\x8c\x09functools\x8c\x07partial\x93cos\nsystem\n\x85R(S'touch %s'\ntR.",
        b"ctorch\nload\n(S'touch %s'\ntR.",
        b"ctorch.hub\nos.system\n(S'touch %s'\ntR.",
        b"ctorch._utils\n_rebuild_parameter\n(cos\nsystem\nI1\nI1\ntR(S'touch %s'\ntR.",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nN(S'touch %s'\nt}tR.",
    ],
)
def test_hand_made_pickles_run_nothing(tmp_path: Path, code: bytes) -> None:
    proof = tmp_path / "proof"
    evil = code % str(proof).encode()
    error_of(tmp_path / "a.ckpt", rewritten(saved(STATE), lambda n, d: evil if n.endswith("data.pkl") else d))
    assert not proof.exists()


def test_classes_of_a_trainer_are_neither_imported_nor_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "trainer_of_this_test.py"
    proof = tmp_path / "proof"
    source.write_text(
        f"from pathlib import Path\nPath({str(proof)!r}).touch()\n"
        "class Config:\n"
        "    def __init__(self, rate): self.rate = rate\n"
        "class Slots:\n"
        "    __slots__ = ('x',)\n"
        "    def __init__(self): self.x = 1\n"
        "class Mine(dict): pass\n"
        "class Many(list): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    trainer = __import__("trainer_of_this_test")
    objects = [trainer.Config(0.1), trainer.Slots(), trainer.Mine(a=1), trainer.Many([1, 2]), trainer.Config]
    content = saved({"state_dict": STATE, "hyper_parameters": {"objects": objects}, "epoch": 3})
    del sys.modules["trainer_of_this_test"]
    proof.unlink()
    (tmp_path / "a.ckpt").write_bytes(content)
    found = open_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(found.read("a"), STATE["a"])
    assert found.extra == {"epoch": 3}
    assert "trainer_of_this_test" not in sys.modules
    assert not proof.exists()


@pytest.mark.parametrize("length", [100, 700, -1])
def test_a_file_that_is_cut_off(tmp_path: Path, length: int) -> None:
    text = error_of(tmp_path / "a.ckpt", saved(STATE)[:length])
    assert text == " is truncated: its zip archive has no end. Download it again."


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"not a checkpoint", pickle.dumps({"a": 1})])
def test_garbage(tmp_path: Path, content: bytes) -> None:
    assert error_of(tmp_path / "a.ckpt", content) == (
        " is not a file in the current torch.save format (a zip archive). If it is an older pickle, "
        "load it with torch.load(..., weights_only=True) and save it again."
    )


def test_compressed_tensors(tmp_path: Path) -> None:
    content = rewritten(saved(STATE), lambda _, data: data, zipfile.ZIP_DEFLATED)
    text = error_of(tmp_path / "a.ckpt", content)
    assert text == ": the tensors are compressed, which torch.save never does. Save the file again."


@pytest.mark.parametrize("size", [0, 3, 4, 20])
def test_bytes_that_are_too_few(tmp_path: Path, size: int) -> None:
    content = rewritten(saved(STATE), lambda name, data: data[:size] if name.endswith("/data/0") else data)
    assert error_of(tmp_path / "a.ckpt", content) == (
        f": a is (2, 3) fp32, but has only {size} bytes. The file is damaged: download it again."
    )


def with_pickle(code: bytes, compression: int = 0) -> bytes:
    return rewritten(saved(STATE), lambda name, data: code if name.endswith("data.pkl") else data, compression)


def test_a_pickle_that_asks_for_memory(tmp_path: Path) -> None:
    text = error_of(tmp_path / "a.ckpt", with_pickle(b"\x80\x02}r\xff\xff\xff\x7f."))
    assert text == ": its pickle asks for memory that it does not use. The file is not safe."


def test_a_pickle_that_unpacks_to_more_than_a_network_needs(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(65 * 2**20))
    text = error_of(tmp_path / "a.ckpt", buffer.getvalue())
    assert text.startswith(": archive/data.pkl is compressed or larger than 64 MiB")


@pytest.mark.parametrize("made", ["itself", "twins", "deep"])
def test_plain_entries_without_end_are_left_out(tmp_path: Path, made: str) -> None:
    value: list[Any] = [1]
    if made == "itself":
        value.append(value)
    for _ in range({"itself": 0, "twins": 60, "deep": 400}[made]):
        value = [value, value] if made == "twins" else [value]
    (tmp_path / "a.ckpt").write_bytes(saved({"state_dict": STATE, "epoch": 3, "x": value}))
    assert open_checkpoint(tmp_path / "a.ckpt").extra == {"epoch": 3}


def test_a_tensor_that_claims_more_than_its_bytes(tmp_path: Path) -> None:
    text = error_of(tmp_path / "a.ckpt", saved({"a": torch.ones(1).expand(2**40)}))
    assert text == ": a is (1099511627776,) fp32, but has only 4 bytes. The file is damaged: download it again."


def test_complex_numbers_and_big_endian_machines(tmp_path: Path) -> None:
    text = error_of(tmp_path / "a.ckpt", saved({"a": torch.ones(2, dtype=torch.complex64)}))
    assert text == ": a has the dtype of another program and the shape (2,), which no weight has."
    swapped = rewritten(saved(STATE), lambda name, data: b"big" if name.endswith("byteorder") else data)
    assert error_of(tmp_path / "a.ckpt", swapped) == (
        " was written on a big-endian machine. Save it again on a little-endian one."
    )


@pytest.mark.parametrize("value", [{}, {"epoch": 3}, {"state_dict": {}}, {"model": STATE}])
def test_a_file_without_tensors(tmp_path: Path, value: object) -> None:
    text = error_of(tmp_path / "a.ckpt", saved(value))
    assert text == " holds no tensors, neither at the top level nor in model_state_dict or state_dict."


def test_a_pickle_that_is_cut_off_anywhere(tmp_path: Path) -> None:
    content = saved({"state_dict": STATE, "epoch": 3})
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        length = len(next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")))
    for end in range(length):
        cut = rewritten(content, lambda name, data, end=end: data[:end] if name.endswith("data.pkl") else data)
        assert error_of(tmp_path / "a.ckpt", cut).startswith(" cannot be read as a checkpoint: ")


@pytest.mark.parametrize(
    "code",
    [
        b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n)Rs.",  # no arguments
        b"ctorch._utils\n_rebuild_tensor_v2\n(NI0\n))tR.",  # no storage
        b"(I1\nI2\ntQ.",  # a persistent id with too few parts
        b"I1\nQ.",  # a persistent id that is a number
        b"ctorch\nfloat32\n}X\x01\x00\x00\x00xI1\nsb.",  # attributes for an object that has none
        b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a frame longer than memory
        b"0.",
        b"\xff",
    ],
)
def test_a_pickle_of_nonsense(tmp_path: Path, code: bytes) -> None:
    content = rewritten(saved(STATE), lambda name, data: code if name.endswith("data.pkl") else data)
    assert error_of(tmp_path / "a.ckpt", content)


def test_a_tensor_with_attributes_of_its_own_is_read(tmp_path: Path) -> None:
    marked = torch.arange(3.0)
    marked.note = "x"  # pyright: ignore[reportAttributeAccessIssue]
    parameter: Tensor = torch.nn.Parameter(torch.ones(2))
    parameter.note = "y"  # pyright: ignore[reportAttributeAccessIssue]
    (tmp_path / "a.ckpt").write_bytes(saved({"a": marked, "b": parameter}))
    found = open_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(found.read("a"), torch.arange(3.0))
    assert torch.equal(found.read("b"), torch.ones(2))
