"""What a command reads and will write, settled before it starts, so that it replaces no file that is not its own.

    plan = FilePlan()
    plan.reads(config.base_model_path, *config.lora_path)
    plan.writes(config.save_to)
    plan.check(overwrite=config.overwrite)

A file is known by its device and inode, so links, other spellings of a path, a folder and an index of shards hide
nothing. A file that exists is replaced only if it is ours: nearly every kind of file that lbm-lora writes carries a
mark (see `is_ours`). `overwrite` lifts that for outputs, never for inputs.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import cast

from lbm_lora.atomic import check_link
from lbm_lora.errors import Option, OutputError
from lbm_lora.plain_text import parse_json, read_text
from lbm_lora.regular_file import check_regular

MARK = "made by lbm-lora"
"""The mark in an image or an archive of ours."""
MARK_LINE = f"# {MARK}\n"
"""The mark in a text of ours: a line of its own, since a text of somebody else may say what we made. In the list of
layers, whose lines are documented, it stands in parentheses at the end of a comment."""
MARK_KEY = "lbm_lora_file"
"""Entry, with the kind of file as its value, in JSON and in `.safetensors` headers that have no other of our name."""

_LINES = (MARK_LINE.strip(), f'<meta name="generator" content="{MARK}">', f"<!-- {MARK} -->")
_JSON_MARKS = (b'"lbm_lora_', b'"lbm-lora/report/')
_SEARCHED = 2**16  # bytes at either end of a file
_CONTAINERS = (".safetensors", ".ckpt")  # a base is written in both containers, with the same tensors
_WEIGHTS = (*_CONTAINERS, ".bin", ".pt", ".pth")
_CONFIGS = ("config.yaml", "config.json", "model_index.json", "adapter_config.json", "scheduler_config.json")
_NETWORKS = ("unet", "vae", "scheduler")  # folders of a model of diffusers


@dataclass(frozen=True)
class Output:
    """A file that a command will write.

    Attributes:
        what: what it is, where the user did not name the path: `the report`.
        is_ours: whether an existing file of that path may be replaced without being asked.
    """

    path: Path
    what: str
    is_ours: Callable[[Path], bool]


@dataclass
class FilePlan:
    """Files that a command reads and writes.

    Attributes:
        inputs: file identity -> the path as given.
    """

    inputs: dict[tuple[int, int], Path] = field(default_factory=dict[tuple[int, int], Path])
    outputs: list[Output] = field(default_factory=list[Output])

    def reads(self, *paths: Path | None) -> None:
        """Note files, folders of a model or a LoRA, or indexes with their shards. What does not exist is left out.

        The twin of a checkpoint in the other container and the configuration beside it count as read.
        """
        for path in paths:
            for one in () if path is None else _behind(Path(path)):
                found = _status(one)
                if found is not None and S_ISREG(found.st_mode):
                    self.inputs.setdefault((found.st_dev, found.st_ino), one)

    def writes(self, path: Path, what: str = "", *, ours: Callable[[Path], bool] | None = None) -> None:
        """Note a file that the command will write.

        Args:
            what: what it is, where the user did not name the path: `the report`.
            ours: whether an existing file is one of ours, where the mark alone does not tell.
        """
        self.outputs.append(Output(Path(path), what, ours or is_ours))

    def then(self, later: "FilePlan") -> None:
        """Note the files of a later step of the same command, which may read what an earlier step writes."""
        made = {(found.st_dev, found.st_ino) for one in self.outputs if (found := _status(one.path)) is not None}
        for identity, path in later.inputs.items():
            if identity not in made:
                self.inputs.setdefault(identity, path)
        self.outputs += later.outputs

    def check(self, *, overwrite: bool = False) -> None:
        """Check all of it.

        Args:
            overwrite: whether files that are not ours may be replaced.

        Raises:
            OutputError: an output is an input, a folder, a link to nothing, another output, or a file that lbm-lora
                did not write.
        """
        seen: dict[Path, str] = {}
        for output in self.outputs:
            path, what = output.path, output.what
            name = f"{what} {path}" if what else str(path)
            real = _real(path)
            if real in seen:
                raise OutputError(f"{name} would be written twice: it is {seen[real] or 'another output'} too.")
            seen[real] = what
            found = _status(path)
            if found is None:
                check_link(path)
                continue
            if S_ISDIR(found.st_mode):
                raise OutputError(f"{name} is a folder. Give the path of a file.")
            given = self.inputs.get((found.st_dev, found.st_ino))
            if given is not None:
                raise OutputError(f"{name} {_is_input(path, given)} Choose another path.")
            if not overwrite and not output.is_ours(path):
                raise OutputError(
                    f"{name} exists, and lbm-lora did not write it. Choose another path, or use ",
                    Option("overwrite"),
                    " to replace it.",
                )


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
    return any(line in _LINES or (line.startswith("# ") and line.endswith(f" ({MARK}).")) for line in lines)


def _is_input(path: Path, given: Path) -> str:
    if _real(path) == _real(given) and path.suffix == given.suffix:
        return "is an input of this command and would be overwritten."
    return f"is {given}, an input of this command, and would be overwritten."


def _behind(path: Path) -> Iterator[Path]:
    """The files that a path stands for, and those that are read along with it.

    Other files of a model's folder may be outputs: reports and LoRAs are often kept there, in folders of their own.
    """
    found = _status(path)
    if found is not None and S_ISDIR(found.st_mode):
        for folder in (path, *(path / name for name in _NETWORKS)):
            yield from (one for one in _listed(folder) if one.suffix in _WEIGHTS or one.name in _CONFIGS)
        return
    yield path
    if path.suffix in _CONTAINERS:
        yield from (path.with_suffix(suffix) for suffix in _CONTAINERS)
        beside = path.with_name("config.yaml")
        if not is_ours(beside):  # that of a training run configures no checkpoint
            yield beside
    if path.name.endswith(".index.json"):
        try:
            names = cast(dict[str, str], parse_json(read_text(path))["weight_map"]).values()
            yield from (path.parent / name for name in set(names))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return  # whoever reads the index says what is wrong with it


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _status(path: Path) -> os.stat_result | None:
    """What the system says about a path; None where it says nothing, or takes no such name."""
    try:
        return path.stat()
    except (OSError, ValueError):
        return None


def _real(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links
        return path.absolute()
