"""Outputs are complete or absent, and never replace an input, a file of another program, or hours of training."""

import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lbm_lora.adapter.metadata import STEP_KEY
from lbm_lora.checkpoint import SafetensorsWriter, TensorSpec, TorchWriter
from lbm_lora.errors import OutputError, spelled
from lbm_lora.files import (
    BASE,
    MARK,
    MARK_KEY,
    TRAINED,
    Outputs,
    atomic_folder,
    atomic_path,
    check_regular,
    current,
    file_digest,
    is_ours,
    is_same,
    is_trained,
    together,
    write_text,
    written_bytes,
)
from lbm_lora.imaging.image_file import write_image

SPECS = {"a": TensorSpec(dtype=torch.float32, shape=(20_000,))}


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refusal(outputs: Outputs) -> str:
    with pytest.raises(OutputError) as refused:
        outputs.check()
    return spelled(refused.value.args, lambda option: f"--{option.name}")


def ours(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# {MARK}\nx: 1\n")
    return path


def theirs(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("somebody's")
    return path


def trained(path: Path) -> Path:
    save_file({"a": torch.ones(1)}, path, {MARK_KEY: "LoRA", STEP_KEY: "500 0123"})
    return path


@contextmanager
def file_limit(nbytes: int) -> Generator[None]:
    """No file of this process grows beyond a size: a disk that is full in the middle of a write."""
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


# Complete or absent


def test_a_file_appears_complete_with_the_folders_above_it(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent
        assert temporary.name.startswith(".x.txt.")
        assert temporary.suffix == ".part"
    assert path.read_text() == "half"
    assert names(path.parent) == ["x.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_or_an_interrupt_leaves_the_old_file_and_no_part(tmp_path: Path, error: type[BaseException]) -> None:
    path = theirs(tmp_path / "x.txt")

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("new")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "somebody's"
    assert names(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("writer", [SafetensorsWriter, TorchWriter])
def test_a_disk_that_is_full_is_one_line_and_leaves_the_old_file(tmp_path: Path, writer: Callable[..., object]) -> None:
    path = theirs(tmp_path / "x.ckpt")
    options = {"kind": BASE} if writer is TorchWriter else {}
    match = r"x\.ckpt cannot be written: File too large\."
    with file_limit(4096), pytest.raises(OutputError, match=match), writer(path, SPECS, **options) as file:  # pyright: ignore
        file.write("a", torch.ones(20_000))  # pyright: ignore
    assert path.read_text() == "somebody's"
    assert names(tmp_path) == ["x.ckpt"]


def test_an_error_of_another_file_inside_keeps_its_kind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "x") as temporary:
        temporary.write_text((tmp_path / "missing").read_text())


def test_a_name_of_255_bytes_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / f"{'ß' * 121}.safetensors"
    write_text(path, "x")
    assert path.read_text() == "x"


def test_a_text_with_what_is_no_text_is_written(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "a\udcff\n")
    assert (tmp_path / "x").read_bytes() == b"a?\n"


def test_a_folder_gets_its_files_at_the_end_and_keeps_others(tmp_path: Path) -> None:
    theirs(tmp_path / "new" / "kept")
    with atomic_folder(tmp_path / "new") as temporary:
        (temporary / "a.tar").write_text("a")
        assert names(tmp_path / "new") == ["kept"]
    assert names(tmp_path / "new") == ["a.tar", "kept"]

    def write() -> None:
        with atomic_folder(tmp_path / "other") as temporary:
            (temporary / "a.tar").write_text("a")
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        write()
    assert names(tmp_path) == ["new", "new/a.tar", "new/kept"]


def test_a_kill_leaves_the_old_file_and_a_part_that_says_what_it_is(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from lbm_lora.files import atomic_path\n"
        "with atomic_path(Path('x.txt')) as path: path.write_text('new'); os.kill(os.getpid(), 9)"
    )
    theirs(tmp_path / "x.txt")
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == -9
    part, kept = names(tmp_path)
    assert (part[:7], part[-5:], kept) == (".x.txt.", ".part", "x.txt")
    assert (tmp_path / "x.txt").read_text() == "somebody's"


# Together


def test_files_that_belong_together_appear_at_the_end_and_can_be_read_before(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with together():
        write_text(one, "first")
        with together():  # ends with the outer one
            write_text(two, "22")
        assert not one.exists()
        assert not two.exists()
        assert current(one).read_text() == "first"
        assert written_bytes(one, two) == 7
        write_text(one, "again")
    assert one.read_text() == "again"
    assert current(one) == one
    assert names(tmp_path) == ["one", "two"]


def test_after_an_error_none_of_them_does(tmp_path: Path) -> None:
    old = theirs(tmp_path / "old")

    def write() -> None:
        with together():
            write_text(old, "new")
            write_text(tmp_path / "other", "new")
            raise ValueError("late")

    with pytest.raises(ValueError, match="late"):
        write()
    assert old.read_text() == "somebody's"
    assert names(tmp_path) == ["old"]


# An input is never replaced


def test_a_shard_of_an_index_and_a_file_of_a_models_folder_are_inputs(tmp_path: Path) -> None:
    for name in ("model/unet/weights.safetensors", "model/config.yaml", "shards/1.safetensors"):
        theirs(tmp_path / name)
    index = tmp_path / "shards" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors"}}))
    for name in ("model/unet/weights.safetensors", "model/config.yaml", "shards/1.safetensors"):
        outputs = Outputs(overwrite=True).reads(tmp_path / "model", index).writes(tmp_path / name)
        assert "an input of this command" in refusal(outputs)
    Outputs().reads(tmp_path / "model", index).writes(tmp_path / "model" / "lora.safetensors").check()


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_link_is_what_it_leads_to(tmp_path: Path, link: Callable[[Path, Path], None]) -> None:
    source, alias = ours(tmp_path / "x.yaml"), tmp_path / "alias.yaml"
    link(source, alias)
    message = refusal(Outputs(overwrite=True).reads(source).writes(alias, "the sidecar"))
    assert message == (
        f"the sidecar {alias} is {source}, an input of this command, and would be overwritten. Choose another path."
    )
    assert "is an input of this command" in refusal(Outputs().reads(alias).writes(tmp_path / "." / "alias.yaml"))


def test_another_spelling_of_a_path_is_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ours(Path("x.yaml"))
    assert "an input of this command" in refusal(Outputs().reads(tmp_path / "x.yaml").writes(Path("x.yaml")))
    assert "would be written twice" in refusal(Outputs().writes(Path("y")).writes(tmp_path / "y"))


def test_what_an_earlier_step_makes_is_no_input_of_a_later_one(tmp_path: Path) -> None:
    made, source = ours(tmp_path / "base.yaml"), ours(tmp_path / "source.yaml")
    first = Outputs().reads(source).writes(made)
    first.then(Outputs().reads(made).writes(tmp_path / "lora.yaml")).check()
    assert first.paths == (made, tmp_path / "lora.yaml")
    later = Outputs().reads(made).writes(tmp_path / "x.yaml")
    assert "an input of this command" in refusal(Outputs().reads(source).then(later.writes(source)))


def test_what_does_not_exist_and_an_index_that_is_damaged_are_left_to_their_readers(tmp_path: Path) -> None:
    index = tmp_path / "x.index.json"
    for text in ("{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'):
        index.write_text(text)
        Outputs().reads(index, tmp_path / "missing", None, "a\0b").writes(tmp_path / "y").check()


# Files that are there


def test_a_file_of_ours_is_replaced_and_another_one_needs_overwrite(tmp_path: Path) -> None:
    Outputs().writes(ours(tmp_path / "x.yaml")).check()
    outputs = Outputs().writes(theirs(tmp_path / "y.yaml"), "the sidecar").writes(theirs(tmp_path / "z.yaml"))
    assert refusal(outputs) == (
        f"the sidecar {tmp_path}/y.yaml exists, and lbm-lora did not write it. Choose another path, or use --overwrite "
        f"to replace it, and also {tmp_path}/z.yaml."
    )
    Outputs(overwrite=True).writes(tmp_path / "y.yaml").check()


def test_what_a_training_has_saved_needs_overwrite_but_in_a_training(tmp_path: Path) -> None:
    path = trained(tmp_path / "last.safetensors")
    assert "a training run has saved it" in refusal(Outputs().writes(path))
    Outputs(overwrite=True).writes(path).check()
    Outputs(replaces_trained=True).writes(path).check()
    assert "lbm-lora did not write it" in refusal(Outputs(replaces_trained=True).writes(theirs(path)))


def test_every_container_has_a_place_for_the_mark(tmp_path: Path) -> None:
    long = {"others": "x" * 10_000, MARK_KEY: BASE}
    with SafetensorsWriter(tmp_path / "x.safetensors", SPECS, metadata=long) as writer:
        writer.write("a", torch.ones(20_000))
    for kind in (BASE, TRAINED):
        with TorchWriter(tmp_path / f"{kind}.ckpt", SPECS, kind=kind) as writer:
            writer.write("a", torch.ones(20_000))
    noise = Image.effect_noise((300, 300), 100).convert("RGB")
    for suffix in ("png", "jpg", "webp", "tif", "bmp"):
        write_image(noise, tmp_path / f"x.{suffix}", mark=f"{MARK}: result")
        assert is_ours(tmp_path / f"x.{suffix}"), suffix
    (tmp_path / "ledger.json").write_text(json.dumps({MARK_KEY: "ledger of a base", "tensors": []}, indent=1))
    assert is_ours(tmp_path / "x.safetensors")
    assert is_ours(tmp_path / f"{BASE}.ckpt")
    assert is_ours(tmp_path / "ledger.json")
    assert is_trained(tmp_path / f"{TRAINED}.ckpt")
    assert not is_ours(tmp_path / f"{TRAINED}.ckpt")
    for path in (theirs(tmp_path / "y"), tmp_path / "missing", tmp_path):
        assert not is_ours(path)
        assert not is_trained(path)


# What can be known before the work


def test_a_folder_at_the_path_of_a_file_and_a_file_at_that_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert refusal(Outputs().writes(tmp_path / "out")) == f"{tmp_path}/out is a folder. Give the path of a file."
    theirs(tmp_path / "file")
    assert f"would be in {tmp_path}/file, which is a file." in refusal(Outputs().writes(tmp_path / "file/a/x"))


def test_a_loop_of_links_and_names_that_no_file_has(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "loop" / "x", tmp_path / "loop", tmp_path / ("a" * 300), tmp_path / "a\0b"):
        with pytest.raises(OutputError, match=r"cannot be written|which is a file"):
            Outputs().writes(path).check()
    with pytest.raises(OutputError, match="cannot be written"):
        write_text(Path("/proc/nothing/x"), "x")


@pytest.fixture
def modes_count() -> None:
    """Root may write anywhere, whatever the modes say."""
    if os.geteuid() == 0:
        pytest.skip("runs as root")


@pytest.mark.usefixtures("modes_count")
def test_a_read_only_folder_and_a_write_protected_file(tmp_path: Path) -> None:
    path = ours(tmp_path / "x.yaml")
    path.chmod(stat.S_IRUSR)
    assert "is write-protected. Choose another path, or make it writable." in refusal(Outputs().writes(path))
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert f"{tmp_path} is read-only for this user" in refusal(Outputs().writes(tmp_path / "a" / "b"))
        with pytest.raises(OutputError, match="cannot be written: Permission denied"):
            write_text(tmp_path / "y", "x")
    finally:
        tmp_path.chmod(stat.S_IRWXU)


def test_the_modes_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ours(tmp_path / "x.yaml")
    monkeypatch.setattr(os, "access", lambda asked, mode: Path(asked) != path)
    assert "is write-protected" in refusal(Outputs(overwrite=True).writes(path))
    monkeypatch.setattr(os, "access", lambda asked, mode: Path(asked) != tmp_path)
    assert f"{tmp_path} is read-only for this user" in refusal(Outputs().writes(tmp_path / "new" / "x"))


# Looking at files


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="Not a regular file") as refused:
        check_regular(tmp_path / "fifo")
    assert refused.value.errno == errno.ENXIO
    with pytest.raises(IsADirectoryError):
        file_digest(tmp_path)
    assert not is_ours(tmp_path / "fifo")


def test_a_file_is_itself_by_any_path_and_a_digest_tells_contents(tmp_path: Path) -> None:
    one, two = theirs(tmp_path / "one"), theirs(tmp_path / "two")
    (tmp_path / "link").symlink_to(one)
    assert is_same(one, tmp_path / "link")
    assert not is_same(one, two)
    assert not is_same(tmp_path / "missing", tmp_path / "missing")
    assert file_digest(one) == file_digest(two) != file_digest(ours(tmp_path / "three"))
