"""Table of a run's metrics: `logs/version_0/metrics.csv`, with a row for each step that is logged.

Lightning's CSV loggers empty the file when a metric has no column yet, and write to whatever file is at the path by
then. This table never loses a row, and keeps a file that somebody has edited or put there.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import BinaryIO

from lbm_lora.atomic import atomic_path
from lbm_lora.errors import OutputError
from lbm_lora.output_place import is_protected
from lbm_lora.own_file import OwnFile
from lbm_lora.progress import warn

_VERSION = re.compile(r"version_([0-9]+)")


class MetricsTable:
    """The table of one part of a run; a part that goes on later begins another one.

    Args:
        folder: the folder of the logs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: OwnFile | None = None
        self._columns: list[str] = []

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Add a row, with a column for every metric that has none.

        Raises:
            OSError, OutputError: the disk is full, or cannot be written to; earlier rows stay.
        """
        if self._file is not None and (not self._file.is_here() or is_protected(self._file.path)):
            warn(f"{self._file.path} was changed by another program and was kept. The metrics go on in a new table.")
            self._file = None
        if self._file is None:
            self._file, self._columns = OwnFile(_new_folder(self._folder) / "metrics.csv"), []
        row = {**values, "step": step}
        columns = sorted({*self._columns, *row})
        try:
            if columns == self._columns and self._file.path.stat().st_nlink == 1:  # else a snapshot would be changed
                with self._file.opened() as file:
                    _append(file, columns, row)
            else:
                with self._file.written():
                    _write_again(self._file.path, columns, row)
        except OutputError:
            if self._file.is_here() or not self._file.path.exists():
                raise
            self.add(values, step)  # in a new table: this one has been changed just now
            return
        self._columns = columns


def _new_folder(logs: Path) -> Path:
    """Create `version_N` with the next number that is free."""
    logs.mkdir(parents=True, exist_ok=True)
    numbers = [int(found[1]) for path in logs.iterdir() if (found := _VERSION.fullmatch(path.name))]
    folder = logs / f"version_{max(numbers, default=-1) + 1}"
    folder.mkdir()
    return folder


def _append(file: BinaryIO, columns: Sequence[str], row: Mapping[str, float]) -> None:
    text = StringIO(newline="")
    csv.DictWriter(text, columns).writerow(row)
    left = text.getvalue().encode()
    size = file.seek(0, 2)
    try:
        while left:
            left = left[file.write(left) :]
    except OSError:
        with suppress(OSError):
            file.truncate(size)  # no half row stays
        raise


def _write_again(path: Path, columns: Sequence[str], row: Mapping[str, float]) -> None:
    rows: list[Mapping[str, str | float]] = [row]
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            rows[:0] = csv.DictReader(file)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
