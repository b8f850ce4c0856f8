"""The names of `lbm_lora.files` for rooms that are not converted yet."""

import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from lbm_lora.files import (
    atomic_folder as _atomic_folder,
)
from lbm_lora.files import (
    atomic_path as _atomic_path,
)
from lbm_lora.files import (
    current,
    together,
    write_text,
    written_bytes,
)

__all__ = ["at_once", "atomic_folder", "atomic_path", "current", "made_folder", "scratch_folder", "together"]
__all__ += ["write_text", "written_bytes"]

at_once = nullcontext


def atomic_path(path: Path):
    return nullcontext(path) if path.parent.suffix == ".part" else _atomic_path(path)


def atomic_folder(folder: Path, *, overwrite: bool = False):
    return _atomic_folder(folder)


@contextmanager
def scratch_folder(path: Path) -> Generator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def made_folder(folder: Path) -> Generator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    yield
