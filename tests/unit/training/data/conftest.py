"""Small images, folders of pairs, shards by the reference writer, and data sets without files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lbm_lora.imaging.encoded import Size
from lbm_lora.shards.samples import Part
from lbm_lora.training.data.dataset import PairDataset
from lbm_lora.training.data.pairs import PairIndex, Record
from lbm_lora.training.settings import DataSettings

Png = Callable[..., bytes]
WritePairs = Callable[..., Path]
WriteShard = Callable[[str, Mapping[str, Mapping[str, bytes]]], Path]
FakeDataset = Callable[..., PairDataset]


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
def fake_dataset() -> FakeDataset:
    """`fake_dataset([(64, 64)] * 5, image_size=(64, 128))`: pairs of these sizes whose bytes are nowhere."""

    def make(sizes: Sequence[Size], *, image_size: tuple[int, ...] = (64,), **settings: Any) -> PairDataset:
        nowhere = Part(Path("nowhere.tar"), 0, 1)
        records = (Record(f"{number:03d}", nowhere, nowhere, None, size) for number, size in enumerate(sizes))
        keys = DataSettings(train_folder=Path("nowhere"), image_size=image_size, **settings)
        return PairDataset(PairIndex(records), keys, seed=0, where="nowhere")

    return make
