"""Recognise files that lbm-lora wrote, by the mark that nearly every kind of them carries."""

from collections.abc import Callable
from pathlib import Path

from lbm_lora.regular_file import check_regular

MARK = "made by lbm-lora"
"""The mark in an archive of ours, and the beginning of the marks in images."""
RESULT = f"{MARK}: result"
"""The mark of an image that a model made of a source."""
SIDE_BY_SIDE = f"{MARK}: side by side"
"""The mark of an image that shows a source next to its result."""
COMPARISON = f"{MARK}: comparison"
"""The mark of a report's image, which shows the results of several networks."""
SAMPLES = f"{MARK}: samples"
"""The mark of an image that shows samples of a training run."""

MARK_LINE = f"# {MARK}\n"
"""The mark in a text of ours: a line of its own, since a text of somebody else may say what we made. A model card,
which is there to be edited, has a mark of its own (`lbm_lora.hub.card`)."""
LIST_MARK = f"({MARK})."
"""The mark in a list of layers, whose lines are documented: the end of a comment."""
GENERATOR = f'<meta name="generator" content="{MARK}">'
"""The mark of a page."""
MARK_KEY = "lbm_lora_file"
"""Entry, with the kind of file as its value, in JSON and in `.safetensors` headers that have no other of our name."""

_LINES = (MARK_LINE.strip(), GENERATOR)
_JSON_MARKS = (b'"lbm_lora_', b'"lbm-lora/report/')
_STATISTICS = '"lbm_lora_statistics"'
_CHECKPOINTS = (f'"{MARK_KEY}":"base"', f'"{MARK_KEY}":"fused checkpoint"')
_SEARCHED = 2**16  # bytes at either end of a file


def is_ours(path: Path, mark: str = "") -> bool:
    """Return whether lbm-lora wrote a file: its mark is near the file's beginning or end.

    A file of no bytes is anybody's, and holds nothing to lose.

    Args:
        mark: the mark of one kind of file; by default that of any kind.
    """
    try:
        check_regular(path)
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            ends = file.read(_SEARCHED)
            file.seek(max(0, size - _SEARCHED))
            ends += file.read(_SEARCHED)
    except OSError:
        return False
    if not size:
        return True
    if mark:
        return mark.encode() in ends
    if any(one in ends for one in _JSON_MARKS):
        return True
    if b"\0" in ends:
        return MARK.encode() in ends
    lines = map(str.strip, ends.decode(errors="replace").splitlines())
    return any(line in _LINES or (line.startswith("# ") and line.endswith(f" {LIST_MARK}")) for line in lines)


def of_kind(mark: str) -> Callable[[Path], bool]:
    """Return a function that tells whether a file is one of ours with that mark, for a file plan."""
    return lambda path: is_ours(path, mark)


def is_marked(path: Path) -> bool:
    """Return whether a file holds our mark, which one of no bytes does not."""
    return is_ours(path) and path.stat().st_size > 0


def is_statistics(path: Path) -> bool:
    """Return whether lbm-lora wrote a file, and it holds statistics."""
    return is_ours(path, _STATISTICS)


def is_checkpoint(path: Path) -> bool:
    """Return whether lbm-lora wrote a file, and it is a base or a fused checkpoint."""
    return any(is_ours(path, mark) for mark in _CHECKPOINTS) or (path.suffix == ".ckpt" and is_ours(path))


def is_lora(path: Path) -> bool:
    """Return whether lbm-lora wrote a file, and it is neither statistics nor a checkpoint, which take long to make."""
    return is_ours(path) and not (is_marked(path) and (is_statistics(path) or is_checkpoint(path)))
