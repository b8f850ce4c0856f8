"""The machine and the versions that a number belongs to: no host names, no paths."""

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
    """CPU model, cores and those that the measured processes may use, memory, system, and the GPU where one is used."""
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
    """Versions of Python and the packages, and the commit of the code."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}, "commit": _commit()}


def memory() -> dict[str, int]:
    """MemTotal and MemAvailable in bytes; zeros where the system does not say."""
    found = proc_numbers(Path("/proc/meminfo"))
    return {name: 1024 * found.get(name, 0) for name in ("MemTotal", "MemAvailable")}


def cpu_model() -> str:
    """The processor's name."""
    file = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", file.read_text() if file.exists() else "", re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def require_space(folder: Path, nbytes: int, what: str) -> None:
    """Exit with one line where the disk of a folder has less room than `nbytes` and half a gigabyte."""
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
