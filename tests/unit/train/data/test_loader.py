"""The loader: the same batches with and without worker processes, and its own random state."""

from collections.abc import Callable
from pathlib import Path

import torch

from lbm_lora.train.data import BucketBatches, make_loader, open_data
from lbm_lora.train.settings.data import DataSettings


def test_workers_change_nothing(write_pairs: Callable[..., Path]) -> None:
    folder = write_pairs(count=7)
    path = folder / "003.source.png"
    path.write_bytes(path.read_bytes()[:200])
    settings = DataSettings(train_folder=folder, image_size=(64, 96), flip=True, max_corrupt=0.5)
    dataset = open_data(settings, "train", seed=3)
    read = []
    for num_workers in (0, 2):
        batches = BucketBatches(dataset, 2, seed=3)
        loader = make_loader(dataset, batches, num_workers=num_workers)
        assert len(loader) == 3
        epochs = []
        for epoch in range(2):
            batches.set_epoch(epoch)
            epochs += list(loader)
        batches.start(2)  # within the second epoch
        read.append([*epochs, *loader])
    for one, other in zip(*read, strict=True):
        assert (one.indices, one.epoch, one.skipped) == (other.indices, other.epoch, other.skipped)
        assert torch.equal(one.source, other.source)
    assert [batch.epoch for batch in read[0]] == [0, 0, 0, 1, 1, 1, 1]
    assert read[0][-1].indices == read[0][-2].indices
    assert any(batch.skipped for batch in read[0])


def test_the_global_random_state_is_left_alone(write_pairs: Callable[..., Path]) -> None:
    dataset = open_data(DataSettings(train_folder=write_pairs(), image_size=(64,)), "train", seed=0)
    before = torch.get_rng_state()
    assert len(list(make_loader(dataset, BucketBatches(dataset, 1, seed=0)))) == 3
    assert torch.equal(torch.get_rng_state(), before)
