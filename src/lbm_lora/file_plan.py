"""What a command reads and will write, settled before it starts, so that it replaces no file that is not its own.

    plan = FilePlan()
    plan.reads(config.base_model_path, *config.lora_path)
    plan.writes(config.save_to, ours=is_lora)
    plan.check(overwrite=config.overwrite)

A file is known by its device and inode, so links, other spellings of a path, a folder and an index of shards hide
nothing. A file that exists is replaced only if it is ours and of the same kind: nearly every kind of file that lbm-lora
writes carries a mark (see `lbm_lora.ownership`). `overwrite` lifts that for outputs, never for inputs.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import cast

from lbm_lora.errors import Option, OutputError
from lbm_lora.late_files import expect
from lbm_lora.missing_path import absolute_path, real_path
from lbm_lora.output_place import check_link, check_way, check_writable, is_protected
from lbm_lora.ownership import RUN_LINE, is_any_kind, is_ours
from lbm_lora.plain_text import parse_json, read_text
from lbm_lora.regular_file import status_of

_CONTAINERS = (".safetensors", ".ckpt")  # a base is written in both containers, with the same tensors
_WEIGHTS = (*_CONTAINERS, ".bin", ".pt", ".pth")
_INDEX = ".index.json"
_LORAS = {"adapter_model", "pytorch_lora_weights"}  # read from a folder whatever else it holds
_CONFIGS = ("config.yaml", "config.json", "model_index.json", "adapter_config.json", "scheduler_config.json")
_NETWORKS = ("unet", "vae", "scheduler")  # folders of a model of diffusers


@dataclass(frozen=True)
class Output:
    """A file that a command will write.

    Attributes:
        what: what it is, where the user did not name the path: `the report`.
        is_ours: whether an existing file of that path may be replaced without being asked.
        may_stay: whether the command may leave an existing file as it is; it need not be replaceable then.
    """

    path: Path
    what: str
    is_ours: Callable[[Path], bool]
    may_stay: bool = False

    @property
    def name(self) -> str:
        """The output as messages refer to it."""
        return f"{self.what} {self.path}" if self.what else str(self.path)


@dataclass
class FilePlan:
    """Files that a command reads and writes.

    Attributes:
        inputs: file identity -> the path as given.
        sizes: size of an input in bytes -> the paths of all inputs of that size.
        read_as: file identity -> all paths, as given to `reads` and without links, that stand for it.
        folders: folder of a model, without links -> the path as given.
        open_folders: folder for outputs whose names are not known yet -> whether a file in it may be replaced.
    """

    inputs: dict[tuple[int, int], Path] = field(default_factory=dict[tuple[int, int], Path])
    sizes: dict[int, set[Path]] = field(default_factory=dict[int, set[Path]])
    read_as: dict[tuple[int, int], set[Path]] = field(default_factory=dict[tuple[int, int], set[Path]])
    folders: dict[Path, Path] = field(default_factory=dict[Path, Path])
    outputs: list[Output] = field(default_factory=list[Output])
    open_folders: dict[Path, Callable[[Path], bool]] = field(default_factory=dict[Path, Callable[[Path], bool]])

    def reads(self, *paths: Path | None) -> None:
        """Note files, folders of a model or a LoRA, or indexes with their shards. What does not exist is left out.

        The twin of a checkpoint in the other container and the configuration beside it count as read.
        """
        for path in paths:
            if path is not None and _has_one_checkpoint(Path(path)):
                self.folders.setdefault(real_path(Path(path)), Path(path))
            for one in () if path is None else _behind(Path(path)):
                found = status_of(one)
                if path is not None and found is not None and S_ISREG(found.st_mode):
                    identity = found.st_dev, found.st_ino
                    self.inputs.setdefault(identity, one)
                    self.sizes.setdefault(found.st_size, set()).add(absolute_path(one))
                    self.read_as.setdefault(identity, set()).add(real_path(Path(path)))

    def writes(self, path: Path, what: str = "", *, ours: Callable[[Path], bool], may_stay: bool = False) -> None:
        """Note a file that the command will write.

        Args:
            what: what it is, where the user did not name the path: `the report`.
            ours: whether an existing file is one of ours, of the same kind.
            may_stay: whether the command may leave an existing file as it is, because it is already finished.
        """
        self.outputs.append(Output(Path(path), what, ours, may_stay))

    def writes_in(self, folder: Path, *, ours: Callable[[Path], bool]) -> None:
        """Note a folder for files whose names depend on the run; those that exist are noted one by one.

        Args:
            ours: as of `writes`.
        """
        self.open_folders[Path(folder)] = ours

    def then(self, later: "FilePlan", *, made: Iterable[Path | None] = ()) -> None:
        """Note the files of a later step of the same command.

        Args:
            made: files that earlier steps make for the later one. An older file at such a path, or its twin, does not
                count as an input, unless the later step also reads it by another path.
        """
        made_here = {real_path(path) for path in made if path is not None}
        for identity, path in later.inputs.items():
            read_as = later.read_as[identity]
            if not read_as <= made_here:
                self.inputs.setdefault(identity, path)
                self.read_as.setdefault(identity, set()).update(read_as)
        for size, paths in later.sizes.items():
            self.sizes.setdefault(size, set()).update(paths)
        self.folders |= later.folders
        self.outputs += later.outputs
        self.open_folders |= later.open_folders

    def check(self, *, overwrite: bool = False, folders_may_change: bool = False) -> None:
        """Check all of it. A foreign file that appears at an output's path later is not replaced either.

        Args:
            overwrite: whether files that are not ours may be replaced.
            folders_may_change: whether files may be replaced also in a folder that has come to the path of an output's
                folder meanwhile: the command itself looks out for that.

        Raises:
            OutputError: an output is an input, a folder, a link to nothing, another output, or a file that lbm-lora
                did not write; it cannot be in its folder; or it makes a model's folder ambiguous.
        """
        self.check_apart()
        for output in self.outputs:
            if not overwrite and status_of(output.path) is not None and not output.is_ours(output.path):
                why = f"{output.name} exists, and lbm-lora did not write it. "
                if is_any_kind(output.path):
                    why = f"{output.name} exists, and it is another kind of file. "
                raise OutputError(why, "Choose another path, or use ", Option("overwrite"), " to replace it.")
        for output in self.outputs:
            folder = None if folders_may_change else _identity(output.path.parent)
            expect(output.path, self._replaceable(output.is_ours, folder, overwrite=overwrite))
        for folder, ours in self.open_folders.items():
            expect(folder, self._replaceable(ours, None, overwrite=overwrite))

    def _replaceable(
        self, is_ours: Callable[[Path], bool], folder: tuple[int, int] | None, *, overwrite: bool
    ) -> Callable[[Path], bool]:
        """Return whether a file may be replaced later: never an input that was moved there, or its folder.

        Args:
            folder: identity of the file's folder, if it may not have become another one; None: it may.
        """

        def is_replaceable(path: Path) -> bool:
            if folder is not None and _identity(path.parent) != folder:
                return False
            return not self._is_input_by_now(path) and (overwrite or is_ours(path))

        return is_replaceable

    def _is_input_by_now(self, path: Path) -> bool:
        """Return whether a file is an input. One that comes from another disk is a copy: the input itself is gone."""
        found = status_of(path)
        if found is None:
            return False
        is_gone = any(not os.path.lexists(one) for one in self.sizes.get(found.st_size, ()))
        return is_gone or (found.st_dev, found.st_ino) in self.inputs

    def check_apart(self) -> None:
        """Check that every output can be written, and is neither an input nor another output.

        Raises:
            OutputError: one is, or cannot.
        """
        seen: dict[Path, Output] = {}
        for output in self.outputs:
            real = real_path(output.path)
            if real in seen:
                what = seen[real].what or "another output"
                raise OutputError(f"{output.name} would be written twice: it is {what} too.")
            seen[real] = output
        names = Counter(_identity(output.path) for output in self.outputs if not output.may_stay)
        for real, output in seen.items():
            inside = next((seen[above] for above in real.parents if above in seen), None)
            if inside is not None:
                raise OutputError(f"{output.name} would be in {inside.name}, which is a file. Choose another path.")
            self._check_place(output, names[_identity(output.path)])

    def _check_place(self, output: Output, names: int) -> None:
        """Check one output.

        Args:
            names: how many outputs are names of the file that is there.
        """
        path, found = output.path, status_of(output.path)
        check_way(path, output.name)
        if found is None:
            check_writable(path, output.name)
            check_link(path)
            self._check_ambiguous(output)
            return
        if S_ISDIR(found.st_mode):
            raise OutputError(f"{output.name} is a folder. Give the path of a file.")
        given = self.inputs.get((found.st_dev, found.st_ino))
        if given is not None:
            raise OutputError(f"{output.name} {_is_input(path, given)} Choose another path.")
        if output.may_stay:
            return
        if path.is_symlink():  # a rename would replace the link, and not what it leads to
            raise OutputError(f"{output.name} is a link to {path.readlink()}. Give that path, or remove the link.")
        if is_protected(path, names=names):
            raise OutputError(f"{output.name} is write-protected. Choose another path, or make it writable.")
        check_writable(path, output.name)

    def _check_ambiguous(self, output: Output) -> None:
        """Refuse a second checkpoint in a folder that is read for its only one."""
        folder = real_path(output.path.parent)
        if output.path.suffix in _CONTAINERS and folder in self.folders:
            raise OutputError(
                f"{output.name} would be a second checkpoint in {self.folders[folder]}, an input of this command. "
                "Choose another folder, or name the checkpoint in it instead of the folder."
            )


def _identity(path: Path) -> tuple[int, int] | None:
    found = status_of(path)
    return None if found is None else (found.st_dev, found.st_ino)


def _is_input(path: Path, given: Path) -> str:
    if real_path(path) == real_path(given) and path.suffix == given.suffix:
        return "is an input of this command and would be overwritten."
    return f"is {given}, an input of this command, and would be overwritten."


def _behind(path: Path) -> Iterator[Path]:
    """The files that a path stands for, and those that are read along with it.

    Other files of a model's folder may be outputs: reports and LoRAs are often kept there, in folders of their own.
    """
    found = status_of(path)
    if found is not None and S_ISDIR(found.st_mode):
        for folder in (path, *(path / name for name in _NETWORKS)):
            for one in _listed(folder):
                if one.suffix in _WEIGHTS or one.name in _CONFIGS or one.name.endswith(_INDEX):
                    yield one
        yield from _configurations(path)
        return
    yield path
    if path.suffix in _CONTAINERS:
        yield from (path.with_suffix(suffix) for suffix in _CONTAINERS)
    if path.suffix in _WEIGHTS or path.name.endswith(_INDEX):
        yield from _configurations(path.parent)
    if path.stem == "adapter_model":
        yield path.with_name("adapter_config.json")
    if path.name.endswith(_INDEX):
        try:
            names = cast(dict[str, str], parse_json(read_text(path))["weight_map"]).values()
            yield from (path.parent / name for name in set(names))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return  # whoever reads the index says what is wrong with it


def _configurations(folder: Path) -> Iterator[Path]:
    """Yield what may configure the checkpoints in a folder: the config.yaml, or the only other one. No run's does."""
    found = [one for one in _listed(folder) if one.suffix == ".yaml" and not one.name.endswith("_config.yaml")]
    named = folder / "config.yaml"
    if named in found and not is_ours(named, RUN_LINE):
        yield named
        return
    others = [one for one in found if one != named]
    if len(others) == 1:
        yield others[0]


def _has_one_checkpoint(folder: Path) -> bool:
    """Return whether a folder stands for the one checkpoint in it, which no index and no name tells from others."""
    files = _listed(folder)
    stems = {one.stem for one in files if one.suffix in _CONTAINERS}
    return len(stems) == 1 and not stems & _LORAS and not any(one.name.endswith(_INDEX) for one in files)


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (OSError, ValueError):
        return []
