"""The pairs as a dataset: values, stand-ins for what is damaged, the account of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lbm_lora.bundled import PAIRS
from lbm_lora.errors import DataError
from lbm_lora.imaging.image_file import read_image
from lbm_lora.imaging.tensors import mask_to_tensor, to_tensor
from lbm_lora.shards.samples import Skipped
from lbm_lora.training.data.dataset import Draw, PairDataset, open_data
from lbm_lora.training.settings import DataSettings


def opened(folder: Path, **settings: object) -> PairDataset:
    values: dict[str, Any] = {"train_folder": folder, "image_size": (64,), **settings}
    return open_data(DataSettings(**values), "train", seed=0)


def cut(path: Path) -> None:
    """Leave the header and half of the pixels."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_sample_is_the_images_of_its_files() -> None:
    dataset = opened(PAIRS, image_size=(128,), mask_key="mask.png")
    sample = dataset[2]
    key = "lemon-05-forest-to-lobby"
    assert (sample.indices, sample.epoch, sample.skipped) == ((2,), 0, ())
    for role, values in (("source", sample.source), ("target", sample.target)):
        assert values is not None
        assert torch.equal(values, to_tensor([read_image(PAIRS / f"{key}.{role}.png")]))
    assert sample.mask is not None
    with Image.open(PAIRS / f"{key}.mask.png") as mask:
        assert torch.equal(sample.mask, mask_to_tensor(mask)[None, None])
    assert sample.latents is None
    assert dataset.skipped == ()


def test_samples_come_in_the_size_of_their_draw(write_pairs: Callable[..., Path]) -> None:
    dataset = opened(write_pairs(size=(96, 64), mask=True), mask_key="mask.png")
    sample = dataset[Draw(1, 5, (48, 32))]
    assert sample.epoch == 5
    assert sample.source is not None
    assert sample.source.shape == (1, 3, 32, 48)
    assert sample.mask is not None
    assert sample.mask.shape == (1, 1, 32, 48)
    assert sample.mask[0, 0, 0].tolist() == [1.0] * 24 + [0.0] * 24  # no value between valid and invalid
    assert dataset.draw(1).size == (80, 48)
    plain = dataset[1]
    assert plain.source is not None
    assert plain.source.shape == (1, 3, 48, 80)


def test_augmentations_are_the_same_for_all_parts(write_pairs: Callable[..., Path]) -> None:
    folder = write_pairs(count=1, size=(128, 64), mask=True)
    for role in ("source", "target"):
        left = np.zeros((64, 128, 3), dtype=np.uint8)
        left[:, :64] = 255  # as the mask: white where it is valid
        Image.fromarray(left).save(folder / f"000.{role}.png")
    dataset = opened(folder, mask_key="mask.png", flip=True, random_crop=True, aspect_buckets=False)
    seen = set()
    for epoch in range(30):
        sample = dataset[Draw(0, epoch, (64, 64))]
        assert sample.source is not None
        assert sample.mask is not None
        assert sample.target is not None
        assert torch.equal(sample.source, sample.target)
        assert (sample.mask == (sample.source[:, :1] + 1) / 2).float().mean() > 0.9  # but at the edge
        seen.add((round(float(sample.mask.mean()), 2), float(sample.mask[0, 0, 0, 0])))
    assert len(seen) > 10
    assert {corner for share, corner in seen if 0 < share < 1} == {0.0, 1.0}


def test_a_damaged_sample_is_replaced_by_the_next_of_its_shape(write_pairs: Callable[..., Path]) -> None:
    folder = write_pairs(count=4)
    Image.new("RGB", (128, 48)).save(folder / "001.source.png")
    Image.new("RGB", (128, 48)).save(folder / "001.target.png")
    cut(folder / "000.target.png")
    dataset = opened(folder, max_corrupt=0.5)
    draw = Draw(0, 3, (64, 64))
    sample = dataset[draw]
    assert (sample.indices, sample.epoch) == ((2,), 3)
    ((key, reason),) = [(item.key, item.reason) for item in sample.skipped]
    assert key == "000"
    assert reason.startswith("target: cannot be decoded: ")
    source = dataset[Draw(2, 3, (64, 64))].source
    assert sample.source is not None
    assert source is not None
    assert torch.equal(sample.source, source)
    # the one that comes may be damaged too; behind the last comes the first
    cut(folder / "002.source.png")
    assert dataset[draw].indices == (3,)
    assert [item.key for item in dataset[Draw(2, 0, (64, 64))].skipped] == ["002"]
    cut(folder / "003.source.png")
    # no other of its shape is left: any other
    last = dataset[Draw(3, 0, (64, 64))]
    assert (last.indices, [item.key for item in last.skipped]) == ((1,), ["003", "000", "002"])
    assert last.source is not None
    assert last.source.shape == (1, 3, 64, 64)


def test_the_account_stops_at_the_limit(write_pairs: Callable[..., Path]) -> None:
    folder = write_pairs(count=20)
    (folder / "007.target.png").unlink()
    dataset = opened(folder, max_corrupt=0.1)
    assert len(dataset) == 19
    assert [item.key for item in dataset.skipped] == ["007"]
    dataset.count([Skipped("001", "cut"), Skipped("001", "cut")])
    dataset.count([Skipped("001", "cut")])
    assert [item.key for item in dataset.skipped] == ["007", "001"]
    with pytest.raises(
        DataError, match=r"3 of 20 samples cannot be used \(15\.0 %\): .*002 \(cut\), but max_corrupt is 10 %"
    ):
        dataset.count([Skipped("002", "cut")])
