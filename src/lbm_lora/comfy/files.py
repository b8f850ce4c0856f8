"""Files by the names that ComfyUI's lists show, and paths for new ones."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Literal

from lbm_lora.atomic import scratch_folder
from lbm_lora.errors import OutputError
from lbm_lora.late_files import expect, notes_of_one_call
from lbm_lora.missing_path import with_name
from lbm_lora.private_folder import stem_of

Kind = Literal["diffusion_models", "loras"]


def names(kind: Kind) -> list[str]:
    """Return the files of a kind, as ComfyUI lists them."""
    import folder_paths  # pyright: ignore[reportMissingImports]

    return folder_paths.get_filename_list(kind)


def path_of(kind: Kind, name: str) -> Path:
    """Return the path of a file in a list."""
    import folder_paths  # pyright: ignore[reportMissingImports]

    return Path(folder_paths.get_full_path_or_raise(kind, name))


def stamp(kind: Kind, name: str) -> tuple[str, int, int]:
    """Return what changes when a file is written again, so that ComfyUI runs its node again."""
    return name, *_written(path_of(kind, name))


@contextmanager
def new_path(prefix: str, suffix: str = ".safetensors") -> Generator[Path]:
    """Hold a path in ComfyUI's output folder with the next free number: `loras/relight` gives relight_00001_.

    Another instance may write to the same folder, so a private folder next to the path reserves it. One that a killed
    instance has left is removed.

    Args:
        suffix: of the file; empty for a folder.

    Raises:
        OutputError: the prefix leaves the output folder.
    """
    folder, stem = _inside_output(prefix)
    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder, stem, suffix) as path, notes_of_one_call():
        expect(path, lambda _: False)  # a program that copies files does not know that the name is taken
        yield path


@contextmanager
def _held(folder: Path, stem: str, suffix: str) -> Generator[Path]:
    names = {path.name for path in folder.iterdir()}
    for number in count(1):
        path = folder / f"{stem}_{number:05}_{suffix}"
        hold = f"{stem_of(path.name)}.0.part"
        alike = (path.name.casefold(), hold.casefold())  # some disks do not tell cases apart
        if any(name.casefold() in alike for name in names - {hold}):
            continue
        with scratch_folder(path) as held:
            if held.name == hold and not os.path.lexists(path):  # else another instance was faster
                yield path
                return
    raise AssertionError("numbers do not end")


def output_path(name: str) -> Path:
    """Return the path of a file in ComfyUI's output folder.

    Raises:
        OutputError: the name leaves the output folder.
    """
    folder, stem = _inside_output(name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / stem


def typed_path(text: str) -> Path:
    """Return the path that a user typed: absolute, or in ComfyUI's output folder."""
    path = Path(text.strip()).expanduser()
    return path if path.is_absolute() else _output() / path


def typed_stamp(text: str | None) -> tuple[int, int] | None:
    """Return the same for a path that a user typed; None without such a file, and for a path that comes by a link."""
    path = typed_path(text) if text and text.strip() else None
    return _written(path) if path is not None and path.is_file() else None


def _written(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _output() -> Path:
    import folder_paths  # pyright: ignore[reportMissingImports]

    return Path(folder_paths.get_output_directory())


def _inside_output(name: str) -> tuple[Path, str]:
    """Return the folder and the name of a file in the output folder; the name may be that of a link, which is kept."""
    root = _output().resolve()
    path = with_name(root / name.strip())
    path = path.parent.resolve() / path.name
    if not name.strip() or path == root or not path.is_relative_to(root):
        raise OutputError(f"'{name}' is not a name in ComfyUI's output folder. Give one such as loras/relight.")
    return path.parent, path.name
