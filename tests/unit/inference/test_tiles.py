"""Tiles of side-by-side images, kept on disk."""

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lbm_lora.errors import OutputError
from lbm_lora.imaging.grids import tile
from lbm_lora.inference.tiles import Tiles


def image(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_tiles_come_back_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tiles = Tiles()
    images = {Path("a.png"): image(100, 60), Path("b.png"): image(900, 300), Path("c.png"): image(256, 256)}
    for path, one in images.items():
        tiles.add(path, one)
    assert all(tiles[path] == tile(images[path]) for path in reversed(images))
    assert list(tmp_path.iterdir()) == []  # a kill leaves nothing


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def seek(self, *_: int) -> int:
            return 0

        def write(self, _: bytes) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None: ...

    def full(**_: Any) -> Full:
        return Full()

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(OutputError, match=r"No space left on device\. Set TMPDIR to a folder with more space\.$"):
        Tiles().add(Path("a.png"), image(64, 64))
