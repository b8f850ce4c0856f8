"""Files of somebody else that appear at an output's path while a command runs.

The plan of a command's files settles what may be replaced before it starts (`lbm_lora.file_plan`). Minutes or hours
later, whoever renames a new file to its path asks here whether that still holds.
"""

from collections.abc import Callable
from pathlib import Path

from lbm_lora.errors import OutputError

_planned: dict[Path, Callable[[Path], bool]] = {}


def expect(path: Path, is_ours: Callable[[Path], bool] | None) -> None:
    """Note an output that is going to be written.

    Args:
        is_ours: whether a file at its path may be replaced; None: every one may.
    """
    if is_ours is None:
        _planned.pop(_place(path), None)
    else:
        _planned[_place(path)] = is_ours


def check_late(path: Path) -> None:
    """Refuse to replace a file that is not ours, if the path was noted. Each note serves for one file.

    Raises:
        OutputError: there is one.
    """
    is_ours = _planned.pop(_place(path), None)
    if is_ours is not None and path.exists() and not is_ours(path):
        raise OutputError(
            f"{path} appeared while this command ran, and lbm-lora did not write it. It was kept. Move it, or choose "
            "another output path, and run the command again."
        )


def _place(path: Path) -> Path:
    """The path without links on the way to it; it may be a link itself."""
    try:
        return path.parent.resolve() / path.name
    except (OSError, RuntimeError, ValueError):
        return path.absolute()
