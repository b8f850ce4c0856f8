"""Reading a data set through."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lbm_lora.training.data.check import Checked, SizeCount, read_through
from lbm_lora.training.data.dataset import open_data
from lbm_lora.training.settings import DataSettings


def checked(folder: Path, *, num_workers: int = 0, **settings: object) -> Checked:
    values: dict[str, Any] = {"train_folder": folder, "image_size": (64,), "max_corrupt": 1.0, **settings}
    dataset = open_data(DataSettings(**values), "train", seed=0)
    return read_through(dataset, batch_size=2, num_workers=num_workers)


def test_a_sound_data_set(write_pairs: Callable[..., Path]) -> None:
    folder = write_pairs(count=5, mask=True)
    found = checked(folder, mask_key="mask.png")
    assert found == Checked(
        where=str(folder),
        pairs=5,
        nbytes=sum(path.stat().st_size for path in folder.iterdir()),
        skipped=(),
        sizes=(SizeCount(width=64, height=64, samples=5),),
        buckets=(SizeCount(width=64, height=64, samples=5),),
        steps=2,
        notes=("each epoch skips 1 of 5 samples that do not fill a batch of one shape, different ones each time.",),
        masks=5,
        mask_share=0.5,
    )
    assert found.corrupt_share == 0


@pytest.mark.parametrize("num_workers", [0, 1])
def test_everything_corrupt_is_found(write_pairs: Callable[..., Path], num_workers: int) -> None:
    folder = write_pairs(count=6, mask=True)
    (folder / "001.target.png").unlink()
    for name in ("002", "003"):  # two in a row: one stands in for the other
        path = folder / f"{name}.source.png"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    Image.new("L", (64, 64), 255).save(folder / "004.mask.png")
    Image.new("L", (64, 64), 0).save(folder / "005.mask.png")
    found = checked(folder, mask_key="mask.png", num_workers=num_workers)
    assert [item.key for item in found.skipped] == ["001", "002", "003", "005"]
    assert found.pairs == 2
    assert found.corrupt_share == pytest.approx(4 / 6)
    assert found.masks == 2
    assert found.mask_share == pytest.approx(0.75)


def test_sizes_and_buckets(write_pairs: Callable[..., Path], png: Callable[..., bytes]) -> None:
    folder = write_pairs(count=3, size=(120, 80))
    (folder / "000.source.png").write_bytes(png(0, (64, 64)))
    (folder / "000.target.png").write_bytes(png(1, (64, 64)))
    found = checked(folder, image_size=(64, 128), image_size_prob=(0.9, 0.1))
    assert found.sizes == (SizeCount(width=120, height=80, samples=2), SizeCount(width=64, height=64, samples=1))
    assert found.buckets == (SizeCount(width=80, height=48, samples=2), SizeCount(width=64, height=64, samples=1))
    assert found.masks == 0
    assert found.mask_share is None
    assert found.notes == ("shape 64x64 has only 1 of the 2 samples of a batch: they repeat.",)
