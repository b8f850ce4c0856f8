"""This machine as checks: libraries, devices, memory, disk, hub, environment. Nothing is changed or contacted."""

import codecs
import errno
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import torch
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

from lbm_lora import __version__
from lbm_lora.errors import listing
from lbm_lora.runtime import SMALL_MODEL, thread_choice, usable_cores

_PACKAGE = "lbm-lora"
_NOT_FOR_USERS = {"all", "test", "docs", "dev"}
_CPUINFO, _MEMINFO, _CGROUP = Path("/proc/cpuinfo"), Path("/proc/meminfo"), Path("/sys/fs/cgroup")
_SECONDS = 5  # nvidia-smi may hang with a broken driver
_LITTLE_MEMORY = 1_500_000_000  # what streaming commands need at full size, with room
_LITTLE_DISK = 1_000_000_000
_NO_DISK = 10_000_000
_PUBLIC = "https://huggingface.co"
_SHOWN = (
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "PYTHONIOENCODING",
    "PYTHONOPTIMIZE",
    "PYTHONUTF8",
    "TMPDIR",
)
_SECRET = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "HTTPS_PROXY")
"""Their values may hold passwords: only that they are set is shown."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        subject: its name: `memory`.
        level: `note` for what a user may want to change, `problem` for what keeps commands from running.
        found: what is there.
        remedy: what to do; empty for `ok`.
    """

    subject: str
    level: Literal["ok", "note", "problem"]
    found: str
    remedy: str = ""


def _ok(subject: str, found: str) -> Check:
    return Check(subject, "ok", found)


def machine_checks() -> tuple[Check, ...]:
    """Return every check of this machine, in the order in which a user reads them."""
    return (
        *library_checks(),
        _cpu(),
        _threads(),
        *_cuda(),
        *_mps(),
        memory_check(),
        *disk_checks(),
        *hub_checks(),
        environment_check(),
        text_check(),
    )


def library_checks() -> list[Check]:
    """Check Python, the libraries and the extras by the package's own metadata; everything that fits is on one line."""
    checks = [_ok(_PACKAGE, __version__)]
    python = platform.python_version()
    try:
        texts = metadata.requires(_PACKAGE) or []
        about = metadata.metadata(_PACKAGE)
    except metadata.PackageNotFoundError:
        unknown = "run from its sources: the tried versions of its libraries are not recorded"
        return [*checks, _ok("Python", python), Check("libraries", "note", unknown, "Run: pip install lbm-lora")]
    wanted = (about.get_all("Requires-Python") or [""])[0]
    if SpecifierSet(wanted).contains(python, prereleases=True):
        checks.append(_ok("Python", python))
    else:
        text = f"{python} (needs {wanted})"
        checks.append(Check("Python", "problem", text, "Install lbm-lora in a newer Python."))
    requirements = [one for one in _parsed(texts) if one.name != _PACKAGE]
    checks += _set("libraries", [one for one in requirements if _applies(one)], extra="")
    for extra in sorted(set(about.get_all("Provides-Extra") or ()) - _NOT_FOR_USERS):
        own = [one for one in requirements if _applies(one, extra) and not _applies(one)]
        if own:
            checks += _set(f"extra {extra}", own, extra=extra)
    return checks


def _set(subject: str, wanted: list[Requirement], *, extra: str) -> list[Check]:
    """One line for what fits, and one each for the packages that are missing or out of their range."""
    versions = {one.name: _installed(one.name) for one in wanted}
    there = [f"{name} {version}" for name, version in versions.items() if version is not None]
    missing = [name for name, version in versions.items() if version is None]
    checks: list[Check] = []
    if missing and extra:
        lacking = "not installed" if not there else f"not complete, {listing(missing)} missing"
        remedy = f'If a command needs it: pip install "{_PACKAGE}[{extra}]"'
        checks.append(Check(subject, "note", lacking, remedy))
    elif missing:
        checks.append(Check(subject, "problem", f"missing: {listing(missing)}", f"Run: pip install {_PACKAGE}"))
    if there and not (missing and extra):
        checks.append(_ok(subject, ", ".join(there)))
    for one in wanted:
        version = versions[one.name]
        if version is not None and not one.specifier.contains(version, prereleases=True):
            text = f"{version} is not in the tried range {one.specifier}"
            checks.append(Check(one.name, "problem", text, f'Run: pip install "{one.name}{one.specifier}"'))
    return checks


def _parsed(texts: Iterable[str]) -> Iterable[Requirement]:
    for text in texts:
        try:
            yield Requirement(text)
        except InvalidRequirement:  # written by a newer tool
            continue


def _applies(one: Requirement, extra: str = "") -> bool:
    return one.marker is None or one.marker.evaluate({"extra": extra})


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> Check:
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # not in every torch
    has_bf16 = any(getattr(torch.cpu, test)() for test in tests if hasattr(torch.cpu, test))
    bf16 = "bf16 instructions" if has_bf16 else "no bf16 instructions"
    instructions = torch.backends.cpu.get_cpu_capability()
    return _ok("CPU", f"{name}, {usable_cores()} of {os.cpu_count()} cores usable, {instructions}, {bf16}")


def _threads() -> Check:
    most, is_fixed = thread_choice()
    cores = usable_cores()
    if not is_fixed:
        return _ok("threads", f"{most}; 1 for models of under {SMALL_MODEL // 1_000_000} million parameters")
    text = f"{most} for models of every size"
    if most <= cores:
        return _ok("threads", text)
    remedy = f"More threads than cores wait for each other. Use {cores}, or unset OMP_NUM_THREADS."
    return Check("threads", "note", f"{text}, on {cores} cores", remedy)


def _cuda() -> list[Check]:
    driver = _nvidia_driver()
    if not torch.cuda.is_available():
        if not driver:
            return [_ok("CUDA", "none; --device auto is the CPU")]
        text = f"{driver} is there, but this torch ({torch.__version__}) cannot use it"
        remedy = "Install torch for CUDA by the command on https://pytorch.org/get-started/locally/"
        return [Check("CUDA", "note", text, remedy)]
    checks: list[Check] = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        text = f"{torch.cuda.get_device_name(index)}, {gigabytes(free)} of {gigabytes(total)} free"
        text += f", CUDA {torch.version.cuda}" + (f", driver {driver.rpartition(' ')[2]}" if driver else "")
        checks.append(_ok(f"cuda:{index}", text))
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
    return [Check("mps", "note", "Apple's GPU; untested", "extract and calibrate need --device cpu.")]


def gigabytes(nbytes: float) -> str:
    """12345678901 -> `12.3 GB`, 12345678 -> `12.3 MB`, 1234 -> `1.2 kB`."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if nbytes >= unit:
            return f"{nbytes / unit:,.1f} {name}"
    return f"{nbytes / 1e3:,.1f} kB"


def memory_check() -> Check:
    """Check the memory that a new process can get, within the limit of a container."""
    known = [nbytes for nbytes in (_meminfo(), _control_group()) if nbytes is not None]
    if not known:
        return _ok("memory", "unknown on this system")
    text = f"{gigabytes(min(known))} free"
    if min(known) >= _LITTLE_MEMORY:
        return _ok("memory", text)
    remedy = "Close other programs. Commands that stream (extract, fuse, base, validate) need less than 1 GB."
    return Check("memory", "note", text, remedy)


def _meminfo() -> int | None:
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration, IndexError):
        return None


def _control_group() -> int | None:
    """Memory left of a container's limit; files in the page cache do not count, since the system drops them."""
    try:
        most = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        if most == "max":
            return None
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
        return max(0, int(most) - used + int(stat.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None


def disk_checks() -> list[Check]:
    """Check the current folder, the folder of temporary files and the hub's cache."""
    from huggingface_hub import constants

    try:
        temporary = _disk("temporary files", Path(tempfile.gettempdir()), "problem", "Set TMPDIR to another folder.")
    except FileNotFoundError:
        remedy = "Set TMPDIR to a folder that can be written."
        temporary = Check("temporary files", "problem", "no folder can be written", remedy)
    return [
        _disk("current folder", Path.cwd(), "note", "Write outputs to another folder."),
        temporary,
        _disk("hub cache", Path(constants.HF_HUB_CACHE), "note", "Set HF_HOME to another folder."),
    ]


def _disk(subject: str, path: Path, level: Literal["note", "problem"], remedy: str) -> Check:
    folder = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(folder).free
    text = f"{gigabytes(free)} free at {path}"
    if not _is_writable(folder):
        return Check(subject, level, f"{path} cannot be written", remedy)
    if free < _NO_DISK:
        return Check(subject, "problem", text, f"The disk is full. Delete files, or: {remedy}")
    if free < _LITTLE_DISK:
        return Check(subject, "note", text, f"A full-size checkpoint needs 5 GB. {remedy}")
    return _ok(subject, text)


def _is_writable(folder: Path) -> bool:
    """Return whether a folder is writable, by creating an unnamed file: permissions can mislead."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        return error.errno == errno.ENOSPC  # the free space has its own check


def hub_checks() -> list[Check]:
    """Check where the hub is, whether it may be reached, and whether there is a token, which is never shown."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        remedy = "Only repositories in the cache can be read. Unset HF_HUB_OFFLINE to fetch others."
        hub = Check("hub", "note", "offline (HF_HUB_OFFLINE)", remedy)
    elif str(constants.ENDPOINT) != _PUBLIC:
        parts = urlsplit(constants.ENDPOINT)
        shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # without user and password
        hub = Check("hub", "note", shown, "A mirror may lack repositories. Unset HF_ENDPOINT for the public hub.")
    else:
        hub = _ok("hub", f"{_PUBLIC}, not contacted")
    none = "none; only push and private repositories need one: hf auth login"
    return [hub, _ok("hub token", none if get_token() is None else "set, not shown")]


def environment_check() -> Check:
    """List the environment variables that matter."""
    _, is_fixed = thread_choice()
    names = [name for name in _SHOWN if name in os.environ and (name != "OMP_NUM_THREADS" or is_fixed)]
    names += sorted(name for name in os.environ if name.startswith("PYTORCH_"))
    shown = [f"{name}={os.environ[name]}" for name in names]
    shown += [f"{name} set" for name in _SECRET if name in os.environ]
    return _ok("environment", ", ".join(shown) or "none of the variables that matter is set")


def text_check() -> Check:
    """Check the encoding of names and of what is printed."""
    names, output = sys.getfilesystemencoding(), getattr(sys.stdout, "encoding", None) or "utf-8"
    text = f"{names} for file names, {output} for output"
    if all(_is_utf8(encoding) for encoding in (names, output)):
        return _ok("encoding", text)
    return Check(
        "encoding", "note", text, "Names with other letters are shown escaped, or not found. Set PYTHONUTF8=1."
    )


def _is_utf8(encoding: str) -> bool:
    try:
        return codecs.lookup(encoding).name == "utf-8"
    except LookupError:
        return False
