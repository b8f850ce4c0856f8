"""Foreign files that appear at an output's path while a command runs.

Before a command starts, its file plan settles what may be replaced (`lbm_lora.file_plan`). Minutes or hours later, the
code that renames a new file to its path checks here whether that still holds.
"""

from collections.abc import Callable
from pathlib import Path

from lbm_lora.errors import OutputError
from lbm_lora.missing_path import real_path

_planned: dict[Path, Callable[[Path], bool]] = {}
"""A file, or a folder for all files in it: with and without the links on the way to it, which may be changed."""


def expect(path: Path, is_ours: Callable[[Path], bool] | None) -> None:
    """Note an output that is going to be written, or a folder for outputs whose names are not known yet.

    Args:
        is_ours: whether a file at its path, or in it, may be replaced; None: every one may.
    """
    for name in _names(path):
        if is_ours is None:
            _planned.pop(name, None)
        else:
            _planned[name] = is_ours


def check_late(path: Path) -> None:
    """Refuse to replace a file that is not ours, if its path or its folder was noted.

    The note of a path serves once.

    Raises:
        OutputError: there is one.
    """
    names = _names(path)
    notes = [_planned.pop(name, None) for name in names] + [_planned.get(name.parent) for name in names]
    is_ours = next((one for one in notes if one is not None), None)
    if is_ours is not None and path.exists() and not is_ours(path):
        raise OutputError(
            f"{path} appeared while this command ran, and lbm-lora did not write it. It was kept. Move it, or choose "
            "another output path, and run the command again."
        )


def _names(path: Path) -> tuple[Path, Path]:
    """The path without links on the way to it, and as it was given; it may be a link itself."""
    return real_path(path.parent) / path.name, path.absolute()
