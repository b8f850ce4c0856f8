"""Files in the folder of a run.

step-000500.safetensors   the LoRA after 500 steps (mode full: a tuned checkpoint)
last.safetensors          the newest of them
best.safetensors          the best by the chosen metric
best-of-step-000500.safetensors
                          the best before the validation was changed; with -2, -3, ... if that name is taken
resume.pt                 trainable values, optimizer and position: a stopped run resumes from it
config.yaml               the configuration with all defaults
pictures/step-000500.png  source, predictions and target of validation pairs
pictures/step-000500-earlier.png
                          the same before the validation was changed at this step
logs/                     TensorBoard, CSV or W&B
"""

import itertools
import os
import re
import shutil
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lbm_lora.atomic import atomic_path
from lbm_lora.errors import ConfigError, listing
from lbm_lora.held_folder import held_folder
from lbm_lora.missing_path import real_path
from lbm_lora.output_place import check_writable, is_protected
from lbm_lora.private_folder import remove_leftover
from lbm_lora.regular_file import file_digest, version_of
from lbm_lora.training.settings.train_config import STATE_NAME

_STEP = re.compile(r"step-(\d{6,})\.safetensors")
_GRID = re.compile(r"step-(\d{6,})\.png")
_PART = re.compile(
    r"\.((step-\d{6,}|last|best)\.safetensors|resume\.pt|config\.yaml|step-\d{6,}\.png)\.[0-9a-f]+\.part"
)


@dataclass(frozen=True)
class RunFolder:
    """Paths of files in the folder of a run."""

    path: Path

    @property
    def last(self) -> Path:
        return self.path / "last.safetensors"

    @property
    def best(self) -> Path:
        return self.path / "best.safetensors"

    @property
    def state(self) -> Path:
        return self.path / STATE_NAME

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def step_file(self, step: int) -> Path:
        return self.path / f"step-{step:06d}.safetensors"

    def grid(self, step: int) -> Path:
        return self.path / "pictures" / f"step-{step:06d}.png"

    def step_files(self) -> list[Path]:
        """Return the existing saves, in the order of their steps."""
        return _numbered(self.path, _STEP)

    def results(self) -> list[Path]:
        """Return all output files of a run."""
        return [*self.step_files(), *(path for path in (self.last, self.best, self.state) if path.exists())]

    def refuse_results(self) -> None:
        """Check that the folder holds no run, and no pictures of one.

        Raises:
            ConfigError: the folder already holds a run.
        """
        found = [*self.results(), *self.grids()]
        if found:
            raise ConfigError(
                f"resume is never, but {self.path} already holds a run: {listing((p.name for p in found), limit=3)}. "
                "Choose another save_ckpt_path, or move the run away."
            )

    def keep_best(self, step: int) -> None:
        """Give the best result by another validation a name of its own: `best` is chosen anew.

        Args:
            step: after which it was saved.
        """
        _keep(self.best, f"best-of-step-{step:06d}")

    def keep_grid(self, step: int) -> None:
        """Give the picture of a step, if there is one, a name of its own: another validation draws it again."""
        if self.grid(step).exists():
            _keep(self.grid(step), f"step-{step:06d}-earlier")

    def check_folders(self, *, pictures: bool, logger: str) -> None:
        """Check that the folders in it can be made, or written to.

        Args:
            pictures: whether the run draws pictures.
            logger: the chosen logger.

        Raises:
            OutputError: one is a file, or read-only.
        """
        if pictures:
            check_writable(self.grid(0), "a picture of the run")
        folders = [self.logs] if logger in ("csv", "tensorboard") else []
        for folder in folders:
            check_writable(folder / "a log", "a log of the run")

    def marks(self) -> dict[str, tuple[int, int]]:
        """Return what tells whether a run has written to the folder meanwhile: size and time of each result.

        Some disks (FUSE) give a file another inode each time that they look it up.
        """
        found = {path.name: version_of(path) for path in (self.config, *self.results())}
        return {name: version.content for name, version in found.items() if version is not None}

    def check_same(self, marks: Mapping[str, tuple[int, int]]) -> None:
        """Check that no run has written to the folder since its marks were taken.

        Raises:
            ConfigError: another run has, and may have ended.
        """
        if self.marks() != marks:
            raise ConfigError(
                f"another run has written to {self.path} since this one began. Start again to continue it, or choose "
                "another save_ckpt_path."
            )

    def grids(self) -> list[Path]:
        """Return the existing pictures, in the order of their steps."""
        return _numbered(self.grid(0).parent, _GRID)

    @contextmanager
    def held(self) -> Generator[Callable[[], None]]:
        """Hold the folder while a run writes to it; yields a check that the folder is still the held one.

        Raises:
            ConfigError: another run holds it; by the check: it was moved away, and there is another one now.
        """

        def check() -> None:
            if held is not None and not held.keep():
                raise ConfigError(
                    f"{self.path} was moved away while a run was training in it. What is there now was kept. Move "
                    "the first folder back and start again to continue, or choose another save_ckpt_path."
                )

        with held_folder(self.path) as held:
            if held is None:
                raise ConfigError(
                    f"another run is training in {self.path} right now. Choose another save_ckpt_path, or wait for it."
                )
            yield check

    def check_free(self) -> None:
        """Check that no run holds the folder, if there is one.

        Raises:
            ConfigError: one does.
        """
        if self.path.is_dir():
            with self.held():
                pass

    def remove_parts(self) -> None:
        """Remove partial files that a killed run left."""
        for folder in (self.path, self.grid(0).parent):
            for path in folder.iterdir() if folder.is_dir() else ():
                if _PART.fullmatch(path.name):
                    remove_leftover(path)

    def save_step(self, step: int, write: Callable[[Path], None]) -> None:
        """Write the file of a step, and make it the last one.

        Args:
            write: writes the file of the step to a path, unless it is there.
        """
        path = self.step_file(step)
        write(path)
        try:
            link(path, self.last)
        except FileNotFoundError:  # somebody has moved it away just now
            write(self.last)

    def keep_newest(
        self, keep: int | None, saved: Collection[int], *, is_own: Callable[[int, Path], bool]
    ) -> tuple[int, ...]:
        """Remove all but the newest `keep` files of the run's steps; None keeps them all.

        Args:
            saved: steps that the run has saved. Files of other steps are not the run's, and stay.
            is_own: returns whether the file of a step is still the one that the run has written: another one stays.

        Returns:
            The steps whose files are there now.
        """
        steps = sorted(set(saved))
        chosen = {real_path(path) for path in self.path.iterdir() if path.is_symlink()}  # by the user
        kept = steps[-keep:] if keep else steps
        for one in steps:
            old = self.step_file(one)
            is_free = old.exists() and not old.is_symlink() and real_path(old) not in chosen and not is_protected(old)
            if one not in kept and is_free:
                with suppress(FileNotFoundError):  # somebody has moved it away just now
                    _remove(old, partial(is_own, one))
        return tuple(kept)


def _remove(path: Path, is_own: Callable[[Path], bool]) -> None:
    """Remove a file of the run, and no other one that comes to its path while it is looked at."""
    before = version_of(path)
    if is_own(path) and version_of(path) == before:
        path.unlink()


def _keep(path: Path, name: str) -> None:
    """Give a file a second name, with a number if that is taken by another one."""
    digest = file_digest(path)
    for number in itertools.count(1):
        kept = path.with_name(f"{name}-{number}{path.suffix}" if number > 1 else f"{name}{path.suffix}")
        if not os.path.lexists(kept):
            link(path, kept)
            return
        if kept.is_file() and not kept.is_symlink() and file_digest(kept) == digest:
            return


def _numbered(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """Return the files in a folder whose names fit a pattern, in the order of the number in it."""
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(found, key=lambda item: int(item[0][1]))]


def link(source: Path, target: Path) -> None:
    """Give a file a second name atomically, or copy it if the disk has no hard links."""
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
