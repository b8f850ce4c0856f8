"""This machine, with devices that it need not have, versions that are made up, and no secret shown."""

import errno
import subprocess
import tempfile
from email.message import Message as Headers
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from huggingface_hub import constants

from lbm_lora import machine
from lbm_lora.machine import (
    disk_checks,
    library_checks,
    machine_checks,
    memory_check,
)
from lbm_lora.runtime import chosen_threads


def shown() -> dict[str, tuple[str, str, str]]:
    return {one.subject: (one.level, one.found, one.remedy) for one in machine.machine_checks()}


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_driver")
def test_a_machine_without_a_gpu_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("model name : Ryzen\n")
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine, "usable_cores", lambda: 3)
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    for test in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, test, lambda: False, raising=False)
    found = shown()
    assert found["CPU"] == ("ok", "Ryzen, 3 of 8 cores usable, AVX2, no bf16 instructions", "")
    assert found["CUDA"] == ("ok", "none; --device auto is the CPU", "")


@pytest.mark.usefixtures("no_driver")
def test_more_threads_than_cores_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    with chosen_threads(5, print):
        level, found, remedy = shown()["threads"]
    assert (level, found) == ("note", "5 for models of every size, on 2 cores")
    assert "Use 2" in remedy


def test_a_card_that_torch_cannot_use_is_noted_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/bin/nvidia-smi")
    monkeypatch.setattr(
        machine.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, "NVIDIA L4, 550.54\n")
    )
    level, found, remedy = shown()["CUDA"]
    assert level == "note"
    assert found == f"NVIDIA L4, driver 550.54 is there, but this torch ({torch.__version__}) cannot use it"
    assert "pytorch.org" in remedy


def test_a_driver_that_hangs_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **_: object) -> None:
        raise subprocess.TimeoutExpired(command, 5)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/bin/nvidia-smi")
    monkeypatch.setattr(machine.subprocess, "run", hang)
    assert shown()["CUDA"][0] == "ok"


WANTED = [
    "torch>=2.6",
    "numpy>=1.26",
    'peft>=0.16; extra == "train"',
    'webdataset>=1.0.2; extra == "train"',
    'gradio>=6.0.2; extra == "app"',
    'lbm-lora[app,train]; extra == "all"',
    'pytest>=8.2; extra == "test"',
]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Name -> version of what is installed; a test changes it."""
    versions = {"torch": "2.13.0+cpu", "numpy": "2.4.6", "peft": "0.21.2", "webdataset": "1.0.2", "gradio": "6.1"}
    about = Headers()
    about["Requires-Python"] = ">=3.11"
    for extra in ("train", "app", "comfy", "all", "test", "docs", "dev"):
        about["Provides-Extra"] = extra

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "requires", lambda name: WANTED)
    monkeypatch.setattr(metadata, "metadata", lambda name: about)
    monkeypatch.setattr(metadata, "version", version)
    return versions


def lines() -> list[tuple[str, str, str, str]]:
    return [(one.subject, one.level, one.found, one.remedy) for one in library_checks()][2:]


def test_what_fits_is_on_one_line_for_the_package_and_for_each_extra(installed: dict[str, str]) -> None:
    assert lines() == [
        ("libraries", "ok", "torch 2.13.0+cpu, numpy 2.4.6", ""),
        ("extra app", "ok", "gradio 6.1", ""),
        ("extra train", "ok", "peft 0.21.2, webdataset 1.0.2", ""),
    ]


def test_a_library_that_is_too_old_is_a_problem_with_the_command_that_mends_it(installed: dict[str, str]) -> None:
    installed["torch"] = "2.5.1"
    assert lines()[1] == ("torch", "problem", "2.5.1 is not in the tried range >=2.6", 'Run: pip install "torch>=2.6"')


def test_a_missing_library_is_a_problem_and_a_missing_extra_a_note(installed: dict[str, str]) -> None:
    for name in ("numpy", "gradio", "webdataset"):
        del installed[name]
    assert lines() == [
        ("libraries", "problem", "missing: numpy", "Run: pip install lbm-lora"),
        ("libraries", "ok", "torch 2.13.0+cpu", ""),
        ("extra app", "note", "not installed", 'If a command needs it: pip install "lbm-lora[app]"'),
        (
            "extra train",
            "note",
            "not complete, webdataset missing",
            'If a command needs it: pip install "lbm-lora[train]"',
        ),
    ]


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the files in which a system of Linux says how much memory there is."""
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    return tmp_path


def test_the_limit_of_a_container_counts_without_its_page_cache(system: Path) -> None:
    (system / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  8000000 kB\n", encoding="ascii")
    assert memory_check().found == "8.2 GB free"
    (system / "memory.max").write_text("max\n", encoding="ascii")
    assert memory_check().found == "8.2 GB free"
    (system / "memory.max").write_text("4000000000\n", encoding="ascii")
    (system / "memory.current").write_text("3500000000\n", encoding="ascii")
    (system / "memory.stat").write_text("anon 5\ninactive_file 500000000\n", encoding="ascii")
    assert (memory_check().level, memory_check().found) == ("note", "1.0 GB free")


@pytest.mark.parametrize(("free", "level"), [(9_000_000, "problem"), (900_000_000, "note"), (9_000_000_000, "ok")])
def test_little_room_is_noted_and_none_is_a_problem(free: int, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: Usage(0, 0, free))
    assert {one.level for one in disk_checks()} == {level}


def test_a_folder_that_cannot_be_written_is_a_problem_only_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_is_writable", lambda folder: False)
    assert [one.level for one in disk_checks()] == ["note", "problem", "note"]


def test_writing_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine._is_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not machine._is_writable(tmp_path / "missing")

    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert machine._is_writable(tmp_path)


def test_no_token_or_password_is_shown_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://me:secret@mirror.example/hub")
    checks = machine_checks()
    text = "\n".join(f"{one.found} {one.remedy}" for one in checks)
    assert "secret" not in text
    assert {"https://mirror.example/hub", "set, not shown"} <= {one.found for one in checks}
    assert "HF_TOKEN set, HTTPS_PROXY set" in text
