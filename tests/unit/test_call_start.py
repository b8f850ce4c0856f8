"""Files that appear at a path after a call has begun."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from lbm_lora import call_start as module
from lbm_lora.call_start import begun_call, call_start


def test_a_given_path_is_known_without_a_clock(tmp_path: Path) -> None:
    """FAT has no time of change, and a disk on the network a clock of its own."""
    path, other = tmp_path / "x", tmp_path / "other"
    for one in (path, other):
        one.write_text("theirs")
    os.utime(other, (0, 0))
    with begun_call([path]):
        assert not call_start().has_appeared(path)
        other.replace(path)
        assert call_start().has_appeared(path)
        path.unlink()
        assert not call_start().has_appeared(path)
    with begun_call([path]):
        path.write_text("theirs")
        assert call_start().has_appeared(path)


def test_a_file_that_was_at_another_path_of_the_call(tmp_path: Path) -> None:
    one, other, third = tmp_path / "one", tmp_path / "other", tmp_path / "third"
    for path in (one, other, third):
        path.write_text(path.name)
    with begun_call([one, other]):
        time.sleep(0.05)  # the clock of files is coarse
        assert not any(call_start().is_input(path) for path in (one, other, third))
        third.unlink()
        one.rename(third)
        third.chmod(0o600)
        other.rename(one)
        assert [call_start().is_input(path) for path in (one, other, third)] == [True, False, True]
        one.write_text("new")
        assert not call_start().is_input(one)
    assert not call_start().is_input(third)


def test_a_file_that_was_in_a_folder_of_the_call(tmp_path: Path) -> None:
    lora, photo = tmp_path / "relight" / "a.safetensors", tmp_path / "relight" / "a.png"
    lora.parent.mkdir()
    for path in (lora, photo):
        path.write_text(path.name)
    with begun_call([lora.parent, tmp_path / "a.safetensors"]):
        time.sleep(0.05)  # the clock of files is coarse
        lora.rename(tmp_path / "a.safetensors")
        photo.rename(tmp_path / "a.png")
        assert call_start().is_input(tmp_path / "a.safetensors")
        assert not call_start().is_input(tmp_path / "a.png")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are listed on Linux alone")
def test_folders_of_many_images_are_not_held(tmp_path: Path) -> None:
    """A process may open 1,024 files on Linux, and 256 on macOS."""
    images = [tmp_path / str(number) / "a.png" for number in range(300)]
    for image in images:
        image.parent.mkdir()
        image.write_text(image.parent.name)
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    with begun_call([], listed=images):
        time.sleep(0.05)  # the clock of files is coarse
        assert len(list(Path("/proc/self/fd").iterdir())) < open_before + 100
        images[0].rename(tmp_path / "b.png")
        assert call_start().is_input(tmp_path / "b.png")


def test_a_disk_that_counts_whole_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_text("theirs")
    second = math.floor(path.stat().st_ctime)
    os.utime(path, (second, second))
    for start, expected in ((second + 0.5, True), (second - 0.5, True), (second + 1.5, False)):
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda start=start: start)
            with begun_call([]):
                patch.setattr(module, "status_of", lambda path: SimpleNamespace(st_ctime=float(second)))
                patch.setattr(module, "link_status", lambda path: None)
                assert call_start().has_appeared(path) == expected


def test_a_process_that_another_one_starts_counts_from_its_beginning(
    tmp_path: Path, handed_on: Callable[[], Callable[[], None]]
) -> None:
    path = tmp_path / "x"
    with begun_call([]):
        started = handed_on()
        time.sleep(0.05)  # the clock of files is coarse
        path.write_text("theirs")
        assert call_start().has_appeared(path)
    with begun_call([]):
        assert not call_start().has_appeared(path)
    started()
    for _ in range(2):
        with begun_call([]):
            assert call_start().has_appeared(path)
    with begun_call([]):
        call_start().hand_on()
    with begun_call([]):
        assert not call_start().has_appeared(path), "a call that begins later"
