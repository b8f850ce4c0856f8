"""What a command reads and will write, settled before it starts, so that it replaces no file that is not its own.

    plan = FilePlan()
    plan.reads(config.base_model_path, *config.lora_path)
    plan.writes(config.save_to, ours=is_lora)
    plan.check(overwrite=config.overwrite)

A file is known by its device and inode, so links, other spellings of a path, a folder and an index of shards hide
nothing. A file that exists is replaced only if it is ours and of the same kind: nearly every kind of file that lbm-lora
writes carries a mark (see `lbm_lora.ownership`). `overwrite` lifts that for outputs, never for inputs.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from lbm_lora.atomic import current
from lbm_lora.call_start import call_start
from lbm_lora.errors import Option, OutputError, listing
from lbm_lora.input_files import CONTAINERS, files_behind, has_one_checkpoint
from lbm_lora.late_files import appeared, expect_planned
from lbm_lora.missing_path import real_path
from lbm_lora.output_place import check_link, check_way, check_writable, is_protected
from lbm_lora.ownership import is_any_kind, is_saved_by_run
from lbm_lora.private_folder import NOTE, is_leftover
from lbm_lora.regular_file import Version, identity_of, status_of, version_in, version_of


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
        versions: the files among them as they were; see `version_of`.
        moments: size in bytes and time of last change, in nanoseconds, of every input, and its path without links.
        read_as: file identity -> all paths, as given to `reads` and without links, that stand for it.
        folders: folder of a model, without links -> the path as given.
        open_folders: folder for outputs whose names are not known yet -> whether a file in it may be replaced.
        extras: file that the command writes only where nothing else is -> whether a file there may be replaced.
    """

    inputs: dict[tuple[int, int], Path] = field(default_factory=dict[tuple[int, int], Path])
    versions: set[Version] = field(default_factory=set[Version])
    moments: set[tuple[int, int, Path]] = field(default_factory=set[tuple[int, int, Path]])
    read_as: dict[tuple[int, int], set[Path]] = field(default_factory=dict[tuple[int, int], set[Path]])
    folders: dict[Path, Path] = field(default_factory=dict[Path, Path])
    outputs: list[Output] = field(default_factory=list[Output])
    open_folders: dict[Path, Callable[[Path], bool]] = field(default_factory=dict[Path, Callable[[Path], bool]])
    extras: dict[Path, Callable[[Path], bool]] = field(default_factory=dict[Path, Callable[[Path], bool]])

    def reads(self, *paths: Path | None) -> None:
        """Note files, folders of a model or a LoRA, or indexes with their shards. What does not exist is left out.

        The twin of a checkpoint in the other container and the configuration beside it count as read.
        """
        for path in paths:
            if path is not None and current(Path(path)) != Path(path):
                continue  # made by an earlier step of the call: what is still at its path is going to be replaced
            if path is not None and has_one_checkpoint(Path(path)):
                self.folders.setdefault(real_path(Path(path)), Path(path))
            behind = () if path is None else (Path(path), real_path(Path(path)))
            for one in dict.fromkeys(one for given in behind for one in files_behind(given)):
                found = status_of(one)
                if path is not None and found is not None and S_ISREG(found.st_mode):
                    identity = found.st_dev, found.st_ino
                    self.inputs.setdefault(identity, one)
                    self.versions.add(version_in(found))
                    self.moments.add((found.st_size, found.st_mtime_ns, real_path(one)))
                    self.read_as.setdefault(identity, set()).add(real_path(Path(path)))

    def writes(self, path: Path, what: str = "", *, ours: Callable[[Path], bool], may_stay: bool = False) -> None:
        """Note a file that the command will write.

        Args:
            what: what it is, where the user did not name the path: `the report`.
            ours: whether an existing file is one of ours, of the same kind.
            may_stay: whether the command may leave an existing file as it is, because it is already finished.
        """
        self.outputs.append(Output(Path(path), what, ours, may_stay))

    def may_write(self, path: Path, *, ours: Callable[[Path], bool]) -> None:
        """Note a file that the command leaves out where another one is; it looks for itself.

        Args:
            ours: see `writes`.
        """
        self.extras[Path(path)] = ours

    def writes_in(self, folder: Path, *, ours: Callable[[Path], bool]) -> None:
        """Note a folder for files whose names depend on the run; those that exist are noted one by one.

        Args:
            ours: see `writes`.
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
        self.versions |= later.versions
        self.moments |= later.moments
        self.folders |= later.folders
        self.outputs += later.outputs
        self.open_folders |= later.open_folders
        self.extras |= later.extras

    def check(self, *, overwrite: bool = False, watched: Collection[Path] = ()) -> None:
        """Check all of it. A foreign file that appears at an output's path later is not replaced either.

        Args:
            overwrite: whether files that are not ours may be replaced.
            watched: outputs that may be replaced also if another folder has come to the path of theirs meanwhile: the
                command itself looks out for that.

        Raises:
            OutputError: an output is an input, a folder, a link to nothing, another output, or a file that lbm-lora
                did not write; it cannot be in its folder; or it makes a model's folder ambiguous.
        """
        self.check_apart()
        later = [*self._replaceable_later(overwrite, watched)]  # before the look, so that later files are told apart
        start, there = call_start(), [output for output in self.outputs if status_of(output.path) is not None]
        for folder in dict.fromkeys(output.path.parent for output in self.outputs):
            pinned = start.pinned_folder(folder)
            if not pinned.is_missing and not pinned.is_at(folder):
                raise OutputError(
                    f"{folder} was replaced by another folder after the command began, which was kept. Run the "
                    "command again."
                )
        for output in there:
            if start.came_with_folder(output.path, start.pinned_folder(output.path.parent)):
                raise OutputError(
                    f"{output.path.parent} was changed, or moved there, since the command began. {output.name} was "
                    "kept. Run the command again."
                )
            if start.is_input(output.path):
                raise OutputError(
                    f"{output.name} is an input of this command, or was one when it began. It was kept. Run the "
                    "command again."
                )
        foreign = [output for output in there if not output.is_ours(output.path)]
        late = [output for output in foreign if overwrite and start.has_appeared(output.path)]  # while inputs were read
        if late:
            raise appeared(late[0].path, late[0].name)
        if foreign and not overwrite:
            raise _foreign(*foreign)
        for output in foreign:
            start.remember(output.path)
        start.note_inputs(version for version in self.versions if version.identity in self.inputs)
        for path, is_replaceable in later:
            expect_planned(path, is_replaceable)

    def _replaceable_later(
        self, overwrite: bool, watched: Collection[Path]
    ) -> Iterator[tuple[Path, Callable[[Path], bool]]]:
        """Yield each output, extra, and folder of outputs, with whether a file there may be replaced later."""
        for output in self.outputs:
            late = {"overwrite": overwrite, "folder_may_change": output.path in watched}
            yield output.path, self._replaceable(output.path.parent, output.path, output.is_ours, **late)
        for path, ours in self.extras.items():
            yield path, self._replaceable(path.parent, path, ours, overwrite=False, folder_may_change=False)
        for folder, ours in self.open_folders.items():
            yield folder, self._replaceable(folder, folder, ours, overwrite=overwrite, folder_may_change=True)

    def _replaceable(
        self, folder: Path, path: Path, is_ours: Callable[[Path], bool], *, overwrite: bool, folder_may_change: bool
    ) -> Callable[[Path], bool]:
        """Return whether a file may be replaced later: never an input that was moved there, or its folder.

        Args:
            path: of an output in the folder, or the folder itself, for several.
        """
        start = call_start()
        before, first = version_of(path), start.pinned_folder(folder)

        def is_replaceable(now: Path) -> bool:
            known = start.pinned_folder(folder) if first.is_missing else first  # the command may have made it
            if not folder_may_change and not known.is_missing and not known.is_at(now.parent):
                return False
            if start.came_with_folder(now, known):
                return False
            if not start.is_written(now) and self._may_be_input(now, before):
                return False
            # --overwrite is for what was there when the command began
            return is_ours(now) or (overwrite and before is not None and version_of(now) == before)

        return is_replaceable

    def _may_be_input(self, path: Path, before: Version | None) -> bool:
        """Return whether a file may be an input, maybe one that was moved from another disk, or copied from its path.

        Such a one has the size of an input, and its time; or that one is gone, as disks round times, and programs do
        not keep them.

        Args:
            before: the file that was there when the command began.
        """
        found = status_of(path)
        if found is None:
            return False
        if (found.st_dev, found.st_ino) in self.inputs:
            return True
        if version_in(found) == before:
            return False
        alike = [(time, path) for size, time, path in self.moments if size == found.st_size]
        return any(time == found.st_mtime_ns or identity_of(path) not in self.inputs for time, path in alike)

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
                raise OutputError(f"{output.name} would be written twice: it is also {what}.")
            seen[real] = output
        for path in self.inputs.values():
            if is_leftover(real_path(path)):
                raise OutputError(
                    f"{path} is in a temporary folder of an unfinished command, which may be removed. Move it."
                )
        for output in self.outputs:
            if is_leftover(real_path(output.path)):
                raise OutputError(
                    f"{output.name} would be in a temporary folder of an unfinished command, which may be removed. "
                    "Choose another path."
                )
        names = Counter(identity_of(output.path) for output in self.outputs if not output.may_stay)
        for real, output in seen.items():
            inside = next((seen[above] for above in real.parents if above in seen), None)
            if inside is not None:
                raise OutputError(f"{output.name} would be in {inside.name}, which is a file. Choose another path.")
            self._check_place(output, names[identity_of(output.path)])

    def _check_place(self, output: Output, names: int) -> None:
        """Check one output.

        Args:
            names: how many outputs are names of the file that is there.
        """
        path, found = output.path, status_of(output.path)
        check_way(path, output.name)
        if path.name.casefold() == NOTE:
            raise OutputError(f"{output.name} has a name that temporary folders need. Choose another one.")
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
        if output.path.suffix in CONTAINERS and folder in self.folders:
            raise OutputError(
                f"{output.name} would be a second checkpoint in {self.folders[folder]}, an input of this command. "
                "Choose another folder, or name the checkpoint in it instead of the folder."
            )


def _foreign(first: Output, *others: Output) -> OutputError:
    """Return the error for outputs that would replace files which are not ours: all of them are named."""
    why = f"{first.name} exists, and lbm-lora did not write it. "
    if is_saved_by_run(first.path):
        why = f"{first.name} exists, and a training run has saved it. "
    elif is_any_kind(first.path):
        why = f"{first.name} exists, and it is another kind of file. "
    too = f", and also {listing(one.name for one in others)}" if others else ""
    return OutputError(why, "Choose another path, or use ", Option("overwrite"), f" to replace it{too}.")


def _is_input(path: Path, given: Path) -> str:
    if real_path(path) == real_path(given) and path.suffix == given.suffix:
        return "is an input of this command and would be overwritten."
    return f"is {given}, an input of this command, and would be overwritten."
