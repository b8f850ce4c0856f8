"""A file is the old one or the new one, never a part, and nothing is left beside it."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from stat import S_IRWXU
from typing import Any

import pytest

from lbm_lora import atomic
from lbm_lora.atomic import at_once, atomic_folder, atomic_path, current, together, write_text, written_bytes
from lbm_lora.errors import OutputError
from lbm_lora.private_folder import remove_leftover


def test_a_clean_exit_replaces_the_file(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "a.bin"
    for content in (b"old", b"new"):
        with atomic_path(target) as temporary:
            assert temporary.parent.parent == target.parent
            assert temporary.name == target.name
            temporary.write_bytes(content)
        assert target.read_bytes() == content
    assert [found.name for found in target.parent.iterdir()] == ["a.bin"]


def write_half(target: Path, error: type[BaseException]) -> None:
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_and_no_other(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(error):
        write_half(target, error)
    assert target.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["a.bin"]


def test_an_exception_leaves_no_file_where_there_was_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_half(tmp_path / "a.bin", ValueError)
    assert not any(tmp_path.iterdir())


def test_an_exception_leaves_no_folder_that_was_not_there(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    for target in (tmp_path / "kept" / "a.bin", tmp_path / "deep" / "er" / "a.bin"):
        with pytest.raises(ValueError):
            write_half(target, ValueError)
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "deep" / "er" / "folder"):
        raise RuntimeError
    with pytest.raises(OutputError, match="cannot be created"), atomic_path(tmp_path / "deep" / ("a" * 300) / "a.bin"):
        raise AssertionError
    assert list(tmp_path.rglob("*")) == [tmp_path / "kept"]


def test_an_empty_folder_that_is_moved_to_the_path_of_a_new_one_stays(tmp_path: Path) -> None:
    (tmp_path / "theirs" / "b").mkdir(parents=True)
    theirs = (tmp_path / "theirs" / "b").stat().st_ino

    def write() -> None:
        with atomic_path(tmp_path / "a" / "b" / "out") as path:
            path.write_text("ours")
            (tmp_path / "a" / "b").rename(tmp_path / "moved")
            (tmp_path / "theirs" / "b").rename(tmp_path / "a" / "b")

    with pytest.raises(OutputError, match="was removed or moved while a file was written to it"):
        write()
    assert (tmp_path / "a" / "b").stat().st_ino == theirs


def test_an_existing_folder_may_be_a_link_or_hold_leftovers(tmp_path: Path) -> None:
    (tmp_path / "real" / ".new.0.part").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    with atomic_folder(tmp_path / "link") as temporary:
        assert temporary.parent.parent.samefile(tmp_path / "real")
        (temporary / "a").write_text("a")
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["a"]


def test_a_folder_that_somebody_uses_by_then_stays(tmp_path: Path) -> None:
    def write_beside() -> None:
        with atomic_path(tmp_path / "deep" / "a.bin"):
            write_text(tmp_path / "deep" / "b.txt", "b")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_beside()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["b.txt"]


def test_the_old_file_is_there_until_the_end(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"


CHILD = """
import sys
from pathlib import Path
from lbm_lora.atomic import atomic_path

with atomic_path(Path(sys.argv[1])) as temporary, temporary.open("wb") as file:
    file.write(b"half of the new")
    file.flush()
    print("half", flush=True)
    sys.stdin.read()
"""


@pytest.mark.faults
def test_a_killed_process_leaves_the_old_file_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    command = [sys.executable, "-c", CHILD, str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"half\n"
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.bin.0.part", "a.bin"]
    write_text(target, "new")  # what the killed process left is not in the way, and does not stay
    assert target.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    """Two containers may have one process id and one folder: the names come from locks, not from ids."""
    target = tmp_path / "a.bin"
    with atomic_path(target) as one:
        one.write_bytes(b"one")
        with atomic_path(target) as other:
            other.write_bytes(b"other")
            assert one != other
            assert not remove_leftover(one.parent)
        assert target.read_bytes() == b"other"
    assert target.read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_link_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.bin").symlink_to("elsewhere.bin")
    with pytest.raises(OutputError, match=r"a\.bin is a link to elsewhere\.bin, where no file is\. Remove"):
        write_text(tmp_path / "a.bin", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    (tmp_path / "elsewhere.bin").write_text("old")
    with pytest.raises(OutputError, match=r"a\.bin is a link to elsewhere\.bin\. It was kept\. Give that path"):
        write_text(tmp_path / "a.bin", "new")
    assert (tmp_path / "elsewhere.bin").read_text() == "old"
    assert (tmp_path / "a.bin").is_symlink()


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "null").symlink_to("/dev/null")
    os.mkfifo(tmp_path / "fifo")
    for name in ("null", "fifo"):
        with pytest.raises(OutputError, match=r"is not a regular file\. Choose another output path\.$"):
            write_text(tmp_path / name, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "null"]


def test_a_folder_appears_complete(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "a").write_text("a")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]
    with (
        pytest.raises(OutputError, match=r"out already exists\. Give a new or an empty folder, or use "),
        atomic_folder(tmp_path / "out"),
    ):
        pass
    (tmp_path / ".two.0.part").mkdir()
    with atomic_folder(tmp_path / "two") as temporary:
        assert not any(temporary.iterdir())
    (tmp_path / "two").rmdir()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", [".gitkeep", ".DS_Store"])
def test_what_git_or_a_file_browser_leaves_in_an_empty_folder_is_kept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("theirs")
    with atomic_folder(tmp_path) as temporary:
        (temporary / "a").write_text("a")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "theirs", "a": "a"}


def test_two_writers_of_one_folder_leave_that_of_the_first(tmp_path: Path) -> None:
    def write(text: str, meanwhile: Callable[[], None]) -> None:
        with atomic_folder(tmp_path / "out") as temporary:
            (temporary / "a").write_text(text)
            meanwhile()

    with pytest.raises(OutputError, match=r"out appeared while this command ran\. Give a new or an empty folder\.$"):
        write("second", lambda: write("first", lambda: None))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out/a").read_text() == "first"


def test_text_is_written_as_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "Größe ∑\n")
    assert (tmp_path / "a.txt").read_bytes() == "Größe ∑\n".encode()


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught, atomic_path(tmp_path):
        pass
    assert str(caught.value) == f"{tmp_path} is a folder. Give the path of a file."
    assert list(tmp_path.parent.glob(".*.part")) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "a.bin"
    with pytest.raises(OutputError) as caught, atomic_path(target):
        pass
    assert str(caught.value) == f"{tmp_path / 'file'} cannot be created: File exists. Choose another output path."


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    target = tmp_path / "a.bin"
    with pytest.raises(OutputError) as caught, atomic_path(target):
        pass
    assert str(caught.value) == f"{target} cannot be written: Permission denied. Choose another output path."


@pytest.mark.parametrize("atomic", [atomic_path, atomic_folder])
def test_a_folder_that_is_removed_meanwhile_is_named(
    tmp_path: Path, atomic: Callable[[Path], AbstractContextManager[Path]]
) -> None:
    with pytest.raises(OutputError) as caught, atomic(tmp_path / "out" / "a"):
        shutil.rmtree(tmp_path / "out")
    assert (
        str(caught.value)
        == f"{tmp_path / 'out'} was removed or moved while a file was written to it. Run the command again."
    )
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "out" / "a"):
        raise FileNotFoundError  # of something else


def test_without_locks_two_writers_do_not_meet_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    target = tmp_path / "a.bin"
    with atomic_path(target) as one:
        one.write_bytes(b"one")
        write_text(target, "other")
        assert one.read_bytes() == b"one"
        assert not remove_leftover(one)
    assert target.read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("length", [256, 300])
def test_a_name_that_is_too_long_is_one_line(tmp_path: Path, length: int) -> None:
    with pytest.raises(OutputError, match=r"cannot be written: File name too long\. Choose another output path\.$"):
        write_text(tmp_path / ("a" * length), "")


def test_the_size_of_what_was_written(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"123")
    second.write_bytes(b"45")
    assert written_bytes(first, second) == 5
    second.unlink()
    with pytest.raises(OutputError, match=r"b was removed after it was written\. Run the command again\.$"):
        written_bytes(first, second)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_a_full_disk_names_the_output(tmp_path: Path, number: int) -> None:
    output = tmp_path / "new" / "out.txt"

    def write() -> None:
        with atomic_path(output) as draft, atomic_path(draft) as inner:
            inner.write_text("half")
            raise OSError(number, os.strerror(number))

    with pytest.raises(OutputError) as caught:
        write()
    assert str(caught.value) == f"{output} cannot be written: {os.strerror(number)}. Choose another output path."
    assert not output.parent.exists()


def test_outputs_appear_together(tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "new" / "b.txt"
    write_text(first, "old")
    with together():
        with together():
            write_text(first, "new")
        write_text(second, "more")
        assert first.read_text() == "old"
        assert not second.exists()
        assert current(first).read_text() == "new"
        assert written_bytes(first, second) == 7
    assert [first.read_text(), second.read_text()] == ["new", "more"]
    assert current(first) == first
    assert sorted(tmp_path.rglob("*")) == [first, second.parent, second]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_error_keeps_all_old_outputs(tmp_path: Path, error: BaseException) -> None:
    def write() -> None:
        with together():
            write_text(tmp_path / "a.txt", "new")
            write_text(tmp_path / "new" / "b.txt", "new")
            with atomic_path(tmp_path / "c.txt"):
                raise error

    write_text(tmp_path / "a.txt", "old")
    with pytest.raises((OutputError, KeyboardInterrupt)):
        write()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.txt"]


@pytest.mark.parametrize("length", [1, 255])
@pytest.mark.parametrize("in_folder", [False, True])
def test_an_output_that_cannot_be_replaced_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int, in_folder: bool
) -> None:
    old, refused = tmp_path / ("a" * length), tmp_path / ("b" * length)
    replace = Path.replace

    def replaced(self: Path, target: Path) -> Path:
        if target == refused:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return replace(self, target)

    def write() -> None:
        if in_folder:
            with atomic_folder(tmp_path, overwrite=True) as folder:
                for path in (old, refused):
                    (folder / path.name).write_text("new")
        else:
            with together():
                for path in (old, tmp_path / "new" / "c", refused):
                    write_text(path, "new")

    for path in (old, refused):
        path.write_text("old")
    monkeypatch.setattr(Path, "replace", replaced)
    with pytest.raises(OutputError, match="cannot be written"):
        write()
    assert {path: path.read_text() for path in tmp_path.iterdir()} == {old: "old", refused: "old"}


def test_a_protected_file_whose_names_are_all_replaced_stays(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"

    def write() -> None:
        with together():
            write_text(one, "new")
            write_text(two, "new")
            one.write_text("old")
            two.hardlink_to(one)
            one.chmod(0o444)

    with pytest.raises(OutputError, match="one is write-protected"):
        write()
    assert [path.read_text() for path in (one, two)] == ["old", "old"]


def test_a_protected_file_that_comes_right_before_the_rename_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, version_at = tmp_path / "a", atomic.version_at

    def late(place: Path) -> Any:
        path.write_text("theirs")
        path.chmod(0o444)
        return version_at(place)

    monkeypatch.setattr(atomic, "version_at", late)
    with pytest.raises(OutputError, match="a is write-protected"):
        write_text(path, "new")
    assert path.read_text() == "theirs"


def test_a_draft_of_a_draft_can_be_read_before_outputs_appear(tmp_path: Path) -> None:
    with together(), atomic_path(tmp_path / "a.txt") as draft:
        write_text(draft, "new")
        assert draft.read_text() == "new"
    assert (tmp_path / "a.txt").read_text() == "new"


def test_an_output_can_appear_before_the_others(tmp_path: Path) -> None:
    with together():
        with at_once():
            write_text(tmp_path / "a.txt", "one")
        assert (tmp_path / "a.txt").read_text() == "one"


def test_a_path_that_is_written_twice_gets_the_last_file(tmp_path: Path) -> None:
    with together():
        write_text(tmp_path / "a.txt", "one")
        write_text(tmp_path / "a.txt", "two")
    assert (tmp_path / "a.txt").read_text() == "two"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.txt"]


@pytest.mark.parametrize("exists", [False, True])
def test_a_full_disk_names_the_output_in_a_folder_that_is_made(tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "shards").mkdir()

    def write() -> None:
        with atomic_folder(tmp_path / "shards") as folder, atomic_path(folder / "a.tar"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError) as caught:
        write()
    assert str(caught.value).startswith(f"{tmp_path / 'shards' / 'a.tar'} cannot be written: No space left on device.")


def test_a_umask_that_lets_nobody_read_names_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_ = os.open

    def opened(path: Path, *arguments: int, **options: Any) -> int:
        if path == tmp_path / ".a.txt.0.part" / "a.txt":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open_(path, *arguments, **options)

    monkeypatch.setattr(os, "open", opened)
    with pytest.raises(OutputError) as caught:
        write_text(tmp_path / "a.txt", "new")
    said = f"{tmp_path / 'a.txt'} cannot be written: Permission denied. Choose another output path."
    assert str(caught.value) == said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("exists", [False, True])
def test_the_umask_does_not_close_a_folder_that_is_made(tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "out").mkdir()
    before = os.umask(0o777)
    try:
        with atomic_folder(tmp_path / "out") as folder:
            assert folder.stat().st_mode & S_IRWXU == S_IRWXU
    finally:
        os.umask(before)


def test_what_appears_meanwhile_and_is_no_file_stays(tmp_path: Path) -> None:
    appear: dict[str, Callable[[Path], object]] = {
        "folder": Path.mkdir,
        "fifo": os.mkfifo,
        "link": lambda path: path.symlink_to("nothing"),
    }

    def write(name: str) -> None:
        with atomic_path(tmp_path / name) as draft:
            draft.write_text("new")
            appear[name](tmp_path / name)

    for name, said in (("folder", "is a folder"), ("fifo", "is not a regular file"), ("link", "is a link to nothing")):
        with pytest.raises(OutputError, match=f"{name} {said}"):
            write(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "folder", "link"]
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("is_link", [False, True])
def test_a_file_or_a_link_in_the_place_of_a_new_folder_stays(tmp_path: Path, is_link: bool) -> None:
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"

    def write() -> None:
        with atomic_folder(out) as temporary:
            (temporary / "a").write_text("a")
            if is_link:
                out.symlink_to("empty")
            else:
                out.write_text("theirs")

    with pytest.raises(OutputError) as caught:
        write()
    assert str(caught.value) == f"{out} appeared while this command ran. Give a new or an empty folder."
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "out"]
    assert not any((tmp_path / "empty").iterdir())


@pytest.mark.parametrize("atomic", [atomic_path, atomic_folder])
@pytest.mark.parametrize("in_one", [False, True])
def test_the_draft_of_another_writer_in_a_folder_of_the_same_name_is_not_ours(
    tmp_path: Path, atomic: Callable[[Path], AbstractContextManager[Path]], in_one: bool
) -> None:
    """The folder is moved away, and another run starts on the same path."""
    out = tmp_path / "out"
    with ExitStack() as other:

        def write() -> None:
            with together() if in_one else nullcontext(), atomic(out / "a") as draft:
                (draft / "b" if draft.is_dir() else draft).write_text("first")
                out.rename(tmp_path / "old")
                theirs = other.enter_context(atomic(out / "a"))
                (theirs / "b" if theirs.is_dir() else theirs).write_text("second")

        with pytest.raises(OutputError) as caught:
            write()
        assert str(caught.value) == f"{out} was removed or moved while a file was written to it. Run the command again."
        assert not (out / "a").exists()
    assert (out / "a" / "b" if atomic is atomic_folder else out / "a").read_text() == "second"
    assert [path.name for path in out.iterdir()] == ["a"]


@pytest.mark.parametrize("exists", [False, True])
def test_a_rename_that_fails_names_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool) -> None:
    """A file that is mounted, as containers do, cannot be replaced."""

    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(self), None, str(target))

    def write() -> None:
        if exists:
            with atomic_folder(tmp_path, overwrite=True) as folder:
                (folder / "a.bin").write_text("new")
        else:
            write_text(tmp_path / "a.bin", "new")

    monkeypatch.setattr(Path, "replace", refuse)
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OutputError) as caught:
        write()
    reason = os.strerror(errno.EBUSY)
    assert str(caught.value) == f"{tmp_path / 'a.bin'} cannot be written: {reason}. Choose another output path."
    assert list(tmp_path.iterdir()) == []


def test_a_name_in_another_encoding_does_not_break_a_text(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "b\udce9.png\n")
    assert (tmp_path / "a").read_text() == "b?.png\n"
