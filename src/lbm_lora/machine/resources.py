"""Memory and disk: what is free, within the limits of a container, and where may be written."""

import errno
import shutil
import tempfile
from pathlib import Path

from lbm_lora.errors import OutputError
from lbm_lora.machine.check import Check, check
from lbm_lora.machine.devices import gigabytes
from lbm_lora.temp_folder import temp_root

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_LITTLE_MEMORY = 1_500_000_000  # what streaming commands need at full size, with room
_LITTLE_DISK = 1_000_000_000
_NO_DISK = 10_000_000


def free_memory() -> int | None:
    """Return the bytes of memory that a new process can get; None where the system does not say (not Linux)."""
    found = [nbytes for nbytes in (_meminfo(), _control_group()) if nbytes is not None]
    return min(found, default=None)


def memory_check() -> Check:
    """Check the free memory."""
    free = free_memory()
    if free is None:
        return check("memory", "unknown on this system")
    if free < _LITTLE_MEMORY:
        remedy = "Close other programs. Commands that stream (extract, fuse, base, validate) need less than 1 GB."
        return check("memory", f"{gigabytes(free)} free", level="note", remedy=remedy)
    return check("memory", f"{gigabytes(free)} free")


def disk_checks() -> list[Check]:
    """Check the current folder, the folder of temporary files and the hub's cache."""
    from huggingface_hub import constants

    try:
        temporary = temp_root()
    except OutputError:
        remedy = "Set TMPDIR to a folder that can be written."
        temp = check("temporary files", "no folder can be written", level="problem", remedy=remedy)
    else:
        temp = _disk("temporary files", temporary, "problem", "Set TMPDIR to another folder.")
    cache = Path(constants.HF_HUB_CACHE)
    return [
        _disk("current folder", Path.cwd(), "note", "Write outputs to another folder."),
        temp,
        _disk("hub cache", cache, "note", "Set HF_HOME to another folder."),
    ]


def free_disk(path: Path) -> int:
    """Return the bytes that are free on the file system of a path, which need not exist yet."""
    return shutil.disk_usage(existing_folder(path)).free


def existing_folder(path: Path) -> Path:
    """Return the nearest folder of a path that exists."""
    folder = path.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def is_writable(folder: Path) -> bool:
    """Return whether a file can be made in a folder: permissions alone do not say, so one without a name is tried."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        return error.errno == errno.ENOSPC  # the free space has its own check


def _disk(subject: str, path: Path, severity: str, remedy: str) -> Check:
    free = free_disk(path)
    text = f"{gigabytes(free)} free at {path}"
    if not is_writable(existing_folder(path)):
        level = "problem" if severity == "problem" else "note"
        return check(subject, f"{path} cannot be written", level=level, remedy=remedy)
    if free < _NO_DISK:
        return check(subject, text, level="problem", remedy=f"The disk is full. Delete files, or: {remedy}")
    if free < _LITTLE_DISK:
        return check(subject, text, level="note", remedy=f"A full-size checkpoint needs 5 GB. {remedy}")
    return check(subject, text)


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
