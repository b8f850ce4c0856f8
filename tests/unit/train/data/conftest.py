"""Small pictures, folders of pairs, shards by the reference writer, and data sets without files."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from webdataset.writer import TarWriter

from lbm_lora.train.data.dataset import PairDataset
from lbm_lora.train.data.index import PairIndex
from lbm_lora.train.data.parts import Part, Record
from lbm_lora.train.data.prepare import Preparation
from lbm_lora.train.data.sample import Size

Png = Callable[..., bytes]
WritePairs = Callable[..., Path]
WriteShard = Callable[[str, Mapping[str, Mapping[str, bytes]]], Path]
FakeDataset = Callable[..., PairDataset]


@pytest.fixture
def png() -> Png:
    """`png(3, (64, 48))`: a PNG of seeded noise in (width, height)."""

    def make(seed: int = 0, size: Size = (64, 64), kind: str = "PNG") -> bytes:
        values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(values).save(file, kind)
        return file.getvalue()

    return make


@pytest.fixture
def write_pairs(tmp_path: Path, png: Png) -> WritePairs:
    """`write_pairs("folder", 3)`: NAME.source.png and NAME.target.png of three names; returns the folder."""

    def write(name: str = "pairs", count: int = 3, *, size: Size = (64, 64), mask: bool = False) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (folder / f"{number:03d}.source.png").write_bytes(png(2 * number, size))
            (folder / f"{number:03d}.target.png").write_bytes(png(2 * number + 1, size))
            if mask:
                white = Image.new("L", size, 0)
                white.paste(255, (0, 0, size[0] // 2, size[1]))  # the left half is valid
                white.save(folder / f"{number:03d}.mask.png")
        return folder

    return write


@pytest.fixture
def write_shard(tmp_path: Path) -> WriteShard:
    """`write_shard("a.tar", {"000": {"source.png": ...}})` with WebDataset's own writer; returns the path."""

    def write(name: str, samples: Mapping[str, Mapping[str, bytes]]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with TarWriter(str(path), encoder=False, mtime=0) as tar:
            for key, parts in samples.items():
                tar.write({"__key__": key, **parts})
        return path

    return write


@pytest.fixture
def fake_dataset() -> FakeDataset:
    """`fake_dataset([(64, 64)] * 5, image_size=(64, 128))`: pairs of these sizes whose bytes are nowhere."""

    def make(sizes: Sequence[Size], *, image_size: tuple[int, ...] = (64,), **settings: bool) -> PairDataset:
        nowhere = Part(Path("nowhere.tar"), 0, 1)
        records = [
            Record(key=f"{number:03d}", source=nowhere, target=nowhere, mask=None, size=size)
            for number, size in enumerate(sizes)
        ]
        shares = (1 / len(image_size),) * len(image_size)
        preparation = Preparation(image_size=image_size, probabilities=shares, seed=0, **settings)
        return PairDataset(PairIndex(records), preparation, where="nowhere", max_corrupt=0.05)

    return make
