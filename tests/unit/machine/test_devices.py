"""Devices that this machine need not have."""

import subprocess

import pytest
import torch

from lbm_lora.machine import devices
from lbm_lora.machine.devices import device_checks, gigabytes
from lbm_lora.threads import chosen_threads


def shown() -> dict[str, tuple[str, str, str]]:
    return {str(one.subject): (one.level, str(one.found), str(one.remedy)) for one in device_checks()}


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_driver")
def test_a_machine_without_a_gpu_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_processor", lambda: "Ryzen")
    monkeypatch.setattr(devices, "usable_cores", lambda: 3)
    monkeypatch.setattr(devices.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(devices, "_has_bf16", lambda: False)
    found = shown()
    assert found["CPU"] == ("ok", "Ryzen, 3 of 8 cores usable, AVX2, no bf16 instructions", "")
    assert found["CUDA"] == ("ok", "none; --device auto is the CPU", "")


@pytest.mark.usefixtures("no_driver")
def test_more_threads_than_cores_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "usable_cores", lambda: 2)
    with chosen_threads(5, print):
        level, found, remedy = shown()["threads"]
    assert (level, found) == ("note", "5 for models of every size, on 2 cores")
    assert "Use 2" in remedy


@pytest.mark.usefixtures("no_driver")
def test_threads_by_size_are_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with chosen_threads(None, print):
        assert shown()["threads"][1].endswith("; 1 for models of under 100 million parameters")


def test_a_card_that_torch_cannot_use_is_noted_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices.shutil, "which", lambda name: "/bin/nvidia-smi")
    monkeypatch.setattr(
        devices.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, "NVIDIA L4, 550.54\n")
    )
    level, found, remedy = shown()["CUDA"]
    assert level == "note"
    assert found == f"NVIDIA L4, driver 550.54 is there, but this torch ({torch.__version__}) cannot use it"
    assert "pytorch.org" in remedy


def test_a_driver_that_hangs_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **_: object) -> None:
        raise subprocess.TimeoutExpired(command, 5)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices.shutil, "which", lambda name: "/bin/nvidia-smi")
    monkeypatch.setattr(devices.subprocess, "run", hang)
    assert shown()["CUDA"][0] == "ok"


def test_each_card_has_its_name_memory_and_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (20_000_000_000 - index, 24_000_000_000))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"L{index}")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(devices, "_nvidia_driver", lambda: "NVIDIA L4, driver 550.54")
    assert shown()["cuda:1"] == ("ok", "L1, 20.0 GB of 24.0 GB free, CUDA 12.8, driver 550.54", "")


@pytest.mark.parametrize(("nbytes", "text"), [(12_345_678_901, "12.3 GB"), (12_345_678, "12.3 MB"), (1234, "1.2 kB")])
def test_sizes(nbytes: int, text: str) -> None:
    assert gigabytes(nbytes) == text
