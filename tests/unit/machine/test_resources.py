"""Free memory and disk, and where may be written."""

import errno
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

from lbm_lora.machine import resources
from lbm_lora.machine.resources import disk_checks, existing_folder, free_disk, free_memory, is_writable, memory_check


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the files in which a system of Linux says how much memory there is."""
    monkeypatch.setattr(resources, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(resources, "_CGROUP", tmp_path)
    return tmp_path


def test_a_system_that_says_nothing_has_unknown_memory(system: Path) -> None:
    assert free_memory() is None
    assert str(memory_check().found) == "unknown on this system"


def test_the_limit_of_a_container_counts_without_its_page_cache(system: Path) -> None:
    (system / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  8000000 kB\n", encoding="ascii")
    assert free_memory() == 8_192_000_000
    (system / "memory.max").write_text("max\n", encoding="ascii")
    assert free_memory() == 8_192_000_000
    (system / "memory.max").write_text("4000000000\n", encoding="ascii")
    (system / "memory.current").write_text("3500000000\n", encoding="ascii")
    (system / "memory.stat").write_text("anon 5\ninactive_file 500000000\n", encoding="ascii")
    assert free_memory() == 1_000_000_000
    assert memory_check().level == "note"


def test_the_disk_of_a_path_that_does_not_exist_is_that_of_its_nearest_folder(tmp_path: Path) -> None:
    assert existing_folder(tmp_path / "a" / "b") == tmp_path
    assert free_disk(tmp_path / "a" / "b") > 0


@pytest.mark.parametrize(("free", "level"), [(9_000_000, "problem"), (900_000_000, "note"), (9_000_000_000, "ok")])
def test_little_room_is_noted_and_none_is_a_problem(free: int, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda path: Usage(0, 0, free))
    assert {one.level for one in disk_checks()} == {level}


def test_a_folder_that_cannot_be_written_is_a_problem_only_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "is_writable", lambda folder: False)
    assert [one.level for one in disk_checks()] == ["note", "problem", "note"]


def test_writing_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not is_writable(tmp_path / "missing")

    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert is_writable(tmp_path)


def test_no_folder_for_temporary_files_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError

    monkeypatch.setattr(tempfile, "gettempdir", none)
    _, temporary, _ = disk_checks()
    assert (temporary.level, str(temporary.remedy)) == ("problem", "Set TMPDIR to a folder that can be written.")
