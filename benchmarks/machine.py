"""Describe the machine and versions of a measurement, without host names or paths."""

import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.measure import proc_numbers

_PACKAGES = ("lbm-lora", "torch", "numpy", "safetensors", "diffusers", "xxhash")
_GB = 1e9


def machine(cores: int, device: str = "cpu") -> dict[str, object]:
    """Return CPU model, cores, cores for the measured processes, memory, system, and the GPU if one is used."""
    gpu: dict[str, object] = {"gpu": torch.cuda.get_device_name(device)} if device.startswith("cuda") else {}
    return gpu | {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "cores used": cores,
        "memory_gb": round(memory()["MemTotal"] / _GB, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def slug(cores: int, device: str = "cpu") -> str:
    """Return the machine as part of a file name: `intel-xeon-processor-2`."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu_model()
    words = re.sub(r"\(.*?\)|@.*|\bcpu\b", " ", name, flags=re.IGNORECASE)
    return "-".join([*re.findall(r"[a-z0-9]+", words.lower()), str(cores)])


def versions() -> dict[str, str]:
    """Return the versions of Python and packages, and the commit of the code."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}, "commit": _commit()}


def memory() -> dict[str, int]:
    """Return MemTotal and MemAvailable in bytes; zeros if the system does not report them."""
    found = proc_numbers(Path("/proc/meminfo"))
    return {name: 1024 * found.get(name, 0) for name in ("MemTotal", "MemAvailable")}


def cpu_model() -> str:
    """Return the processor's name."""
    file = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", file.read_text() if file.exists() else "", re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def require_space(folder: Path, nbytes: int, what: str) -> None:
    """Exit with one line if a folder's disk has less than `nbytes` plus half a gigabyte free."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < nbytes + 0.5 * _GB:
        raise SystemExit(
            f"error: {what} needs {nbytes / _GB:.1f} GB, but only {free / _GB:.1f} GB are free under --work. "
            "Free some, choose another folder with --work, or reduce the scale with --scale 0.2."
        )


def _commit() -> str:
    """Return the commit of the code, with `+` if the working tree differs from it."""
    try:
        run = ["git", "describe", "--always", "--dirty=+", "--abbrev=8", "--exclude=*"]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
