"""The devices: cores, threads and instructions of the CPU, NVIDIA GPUs, Apple's GPU."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

from lbm_lora.machine.check import Check, check
from lbm_lora.threads import SMALL_MODEL, thread_choice, usable_cores

_CPUINFO = Path("/proc/cpuinfo")
_SECONDS = 5  # nvidia-smi may hang with a broken driver
_FOR_CUDA = "Install torch for CUDA by the command on https://pytorch.org/get-started/locally/"


def device_checks() -> list[Check]:
    """Check the CPU and the GPUs."""
    return [_cpu(), _threads(), *_cuda(), *_mps()]


def _cpu() -> Check:
    instructions = torch.backends.cpu.get_cpu_capability()
    bf16 = "bf16 instructions" if _has_bf16() else "no bf16 instructions"
    return check("CPU", f"{_processor()}, {usable_cores()} of {os.cpu_count()} cores usable, {instructions}, {bf16}")


def _threads() -> Check:
    most, is_fixed = thread_choice()
    cores = usable_cores()
    if not is_fixed:
        text = f"{most}; 1 for models of under {SMALL_MODEL // 1_000_000} million parameters"
        return check("threads", text)
    if most > cores:
        remedy = f"More threads than cores wait for each other. Use {cores}, or unset OMP_NUM_THREADS."
        return check("threads", f"{most} for models of every size, on {cores} cores", level="note", remedy=remedy)
    return check("threads", f"{most} for models of every size")


def _has_bf16() -> bool:
    """Whether torch finds AVX512 or AMX instructions for bf16; these functions are not in every torch."""
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, test)() for test in tests if hasattr(torch.cpu, test))


def _processor() -> str:
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _cuda() -> list[Check]:
    driver = _nvidia_driver()
    if not torch.cuda.is_available():
        if driver:
            text = f"{driver} is there, but this torch ({torch.__version__}) cannot use it"
            return [check("CUDA", text, level="note", remedy=_FOR_CUDA)]
        return [check("CUDA", "none; --device auto is the CPU")]
    checks: list[Check] = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        text = f"{torch.cuda.get_device_name(index)}, {gigabytes(free)} of {gigabytes(total)} free"
        text += f", CUDA {torch.version.cuda}" + (f", driver {driver.rpartition(' ')[2]}" if driver else "")
        checks.append(check(f"cuda:{index}", text))
    return checks


def _nvidia_driver() -> str:
    """`NVIDIA L4, driver 550.54`, as the driver's own program says; empty without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return ""
    name, _, driver = (done.stdout.splitlines() or [""])[0].partition(",")
    return f"{name.strip()}, driver {driver.strip()}" if driver else ""


def _mps() -> list[Check]:
    if not torch.backends.mps.is_available():
        return []
    return [check("mps", "Apple's GPU; untested", level="note", remedy="extract and calibrate need --device cpu.")]


def gigabytes(nbytes: float) -> str:
    """12345678901 -> `12.3 GB`, 12345678 -> `12.3 MB`, 1234 -> `1.2 kB`."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if nbytes >= unit:
            return f"{nbytes / unit:,.1f} {name}"
    return f"{nbytes / 1e3:,.1f} kB"
