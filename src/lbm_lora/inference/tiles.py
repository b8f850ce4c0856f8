"""Tiles of side-by-side images, kept on disk: the memory of `--compare` does not grow with the number of images."""

import tempfile
from pathlib import Path
from weakref import finalize

from PIL import Image

from lbm_lora.errors import OutputError
from lbm_lora.imaging.grids import comparison_grid, tile


class Tiles:
    """A column of tiles, by the output that each belongs to.

    They are in one temporary file, which has no name: it is gone when the process ends, even by SIGKILL.
    """

    def __init__(self) -> None:
        try:
            self._file = tempfile.TemporaryFile(prefix="lbm-lora-")  # noqa: SIM115
        except OSError as error:
            raise _full(error) from None
        self._places: dict[Path, tuple[int, tuple[int, int]]] = {}  # offset; width and height
        finalize(self, self._file.close)

    def add(self, output: Path, image: Image.Image) -> None:
        """Keep the tile of an image in mode `RGB`."""
        made = tile(image)
        try:
            offset = self._file.seek(0, 2)
            self._file.write(made.tobytes())
            self._file.flush()
        except OSError as error:
            raise _full(error) from None
        self._places[output] = offset, made.size

    def __getitem__(self, output: Path) -> Image.Image:
        offset, (width, height) = self._places[output]
        self._file.seek(offset)
        return Image.frombytes("RGB", (width, height), self._file.read(3 * width * height))


class Columns:
    """Columns of side-by-side images, on either side of that of the results."""

    def __init__(self, label: str) -> None:
        self.left: dict[str, Tiles] = {}
        self.right: dict[str, Tiles] = {}
        self._label = label

    def beside(self, output: Path, result: Image.Image) -> Image.Image:
        """Return the side-by-side image of a result, mode `RGB`."""
        left, right = ({label: tiles[output] for label, tiles in side.items()} for side in (self.left, self.right))
        columns = {**left, self._label: result, **right}
        return comparison_grid(list(columns), [list(columns.values())])


def _full(error: OSError) -> OutputError:
    return OutputError(
        "the folder of temporary files cannot hold the tiles of the side-by-side images: "
        f"{error.strerror}. Set TMPDIR to a folder with more space."
    )
