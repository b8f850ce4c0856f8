"""The machine and the libraries that a number belongs to; no host names, no paths."""

import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = ("lbm-lora", "torch", "numpy", "safetensors", "diffusers", "xxhash")
_GB = 1e9


def machine(cores: int, device: str = "cpu") -> dict[str, object]:
    """CPU model, cores, memory and system.

    Args:
        cores: that the measured processes may use.
        device: of extract and infer; a CUDA device is named too.
    """
    gpu: dict[str, object] = {"gpu": torch.cuda.get_device_name(device)} if device.startswith("cuda") else {}
    return gpu | {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "cores used": cores,
        "memory_gb": round(memory()["MemTotal"] / _GB, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def slug(cores: int, device: str = "cpu") -> str:
    """The machine as a part of a file name: `intel-xeon-processor-2`."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu_model()
    words = re.sub(r"\(.*?\)|@.*|\bcpu\b", " ", name, flags=re.IGNORECASE)
    return "-".join([*re.findall(r"[a-z0-9]+", words.lower()), str(cores)])


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | {"commit": _commit()}


def memory() -> dict[str, int]:
    """/proc/meminfo in bytes; zeros where there is none."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return {"MemTotal": 0, "MemAvailable": 0}
    return {name: int(rest.split()[0]) * 1024 for name, rest in (line.split(":") for line in lines)}


def cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def require_space(folder: Path, nbytes: int, what: str) -> None:
    """Raises:
    SystemExit: the disk of `folder` has less than `nbytes` and a little room; one line says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < nbytes + 0.5 * _GB:
        raise SystemExit(
            f"error: {what} needs {nbytes / _GB:.1f} GB and {free / _GB:.1f} GB are free under --work. Free some, "
            "choose another folder with --work, or make everything smaller with --scale 0.2."
        )


def _commit() -> str:
    """The commit of the code, with `+` where the working tree differs from it."""
    try:
        run = ["git", "describe", "--always", "--dirty=+", "--abbrev=8", "--exclude=*"]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
