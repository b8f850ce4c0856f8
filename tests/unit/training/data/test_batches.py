"""Which samples form a batch: equal for any number of processes, nothing twice, exact resume; and their loader."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lbm_lora.imaging.encoded import Size
from lbm_lora.training.data.batches import BucketBatches, loader_of
from lbm_lora.training.data.dataset import Draw, PairDataset, open_data
from lbm_lora.training.settings import DataSettings

SQUARE, WIDE, TALL = (64, 64), (128, 48), (48, 128)

shapes = st.lists(st.sampled_from([SQUARE, WIDE, TALL]), min_size=1, max_size=40)
small = st.integers(1, 5)


def drawn(batches: Sequence[Sequence[Draw]]) -> list[Draw]:
    return [draw for batch in batches for draw in batch]


@given(sizes=shapes, batch_size=small, world=small, epoch=st.integers(0, 3), shuffle=st.booleans())
def test_ranks_together_see_what_one_process_sees(
    fake_dataset: Callable[..., PairDataset],
    sizes: list[Size],
    batch_size: int,
    world: int,
    epoch: int,
    shuffle: bool,
) -> None:
    dataset = fake_dataset(sizes, image_size=(64, 128))

    def batches(size: int, rank: int, world: int) -> list[list[Draw]]:
        made = BucketBatches(dataset, size, seed=1, rank=rank, world=world, shuffle=shuffle)
        return list(made.epoch(epoch))

    parts = [batches(batch_size, rank, world) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    assert all(len({len(batch) for batch in step}) == 1 for step in zip(*parts, strict=True))
    together = [drawn(step) for step in zip(*parts, strict=True)]
    alone = batches(batch_size * world, 0, 1)
    assert together == alone


@given(sizes=shapes, batch_size=st.integers(1, 9))
def test_training_takes_full_batches_of_one_size(
    fake_dataset: Callable[..., PairDataset], sizes: list[Size], batch_size: int
) -> None:
    batches = list(BucketBatches(fake_dataset(sizes, image_size=(64, 96)), batch_size, seed=0).epoch(0))
    assert len(batches) > 0
    for batch in batches:
        assert len(batch) == batch_size
        assert len({draw.size for draw in batch}) == 1
    counts, of_shape = Counter(draw.index for draw in drawn(batches)), Counter(sizes)
    assert len(counts) == sum(count // batch_size * batch_size or count for count in of_shape.values())
    repeated = [index for index, count in counts.items() if count > 1]
    assert all(of_shape[sizes[index]] < batch_size for index in repeated)


@given(sizes=shapes, batch_size=small)
def test_every_sample_is_covered_once(
    fake_dataset: Callable[..., PairDataset], sizes: list[Size], batch_size: int
) -> None:
    draws = drawn(list(BucketBatches(fake_dataset(sizes), batch_size, seed=0, cover=True).epoch(0)))
    assert sorted(draw.index for draw in draws) == list(range(len(sizes)))


def test_the_order_depends_on_seed_and_epoch_alone(fake_dataset: Callable[..., PairDataset]) -> None:
    dataset = fake_dataset([SQUARE] * 30 + [WIDE] * 10)

    def order(seed: int, epoch: int) -> list[int]:
        return [draw.index for draw in drawn(list(BucketBatches(dataset, 2, seed=seed).epoch(epoch)))]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6
    assert order(0, 0) != sorted(order(0, 0))
    # shapes are mixed over the epoch, not one after the other
    wide = [index >= 30 for index in order(0, 0)[::2]]
    assert sum(one != other for one, other in pairwise(wide)) > 1


def test_an_interrupted_epoch_goes_on_where_it_stopped(fake_dataset: Callable[..., PairDataset]) -> None:
    batches = BucketBatches(fake_dataset([SQUARE] * 21 + [TALL] * 9, image_size=(64, 96)), 3, seed=2)
    whole = list(batches.epoch(4))
    assert len(whole) == batches.steps == 10
    assert list(batches.epoch(4, start=6)) == whole[6:]
    assert list(batches.epoch(4, start=11)) == []
    assert len(list(batches.epoch(5))) == 10


@pytest.mark.parametrize(("epoch", "batch", "skipped"), [(0, 2, 2), (1, 3, 6), (2, 1, 7)])
def test_epochs_go_on_from_a_position(
    fake_dataset: Callable[..., PairDataset], epoch: int, batch: int, skipped: int
) -> None:
    batches = BucketBatches(fake_dataset([SQUARE] * 6), 2, seed=0)
    assert list(batches.through(3, epoch=epoch, batch=batch)) == list(batches.through(3))[skipped:]


def test_notes_say_what_is_left_out_and_what_repeats(fake_dataset: Callable[..., PairDataset]) -> None:
    batches = BucketBatches(fake_dataset([SQUARE] * 10 + [WIDE] * 3), 2, seed=0, world=2)
    assert batches.notes() == [
        "each epoch skips 2 of 13 samples that do not fill a batch of one shape, different ones each time.",
        "shape 96x40 has only 3 of the 4 samples of a batch: they repeat.",
    ]
    assert BucketBatches(fake_dataset([SQUARE] * 9), 4, seed=0, shuffle=False).notes() == [
        "each epoch skips 1 of 9 samples that do not fill a batch of one shape."
    ]
    assert BucketBatches(fake_dataset([SQUARE] * 8), 4, seed=0).notes() == []
    assert BucketBatches(fake_dataset([SQUARE] * 3), 2, seed=0, cover=True).notes() == []


def test_workers_change_nothing(write_pairs: Callable[..., Path]) -> None:
    folder = write_pairs(count=7)
    path = folder / "003.source.png"
    path.write_bytes(path.read_bytes()[:200])
    settings = DataSettings(train_folder=folder, image_size=(64, 96), flip=True, max_corrupt=0.5)
    dataset = open_data(settings, "train", seed=3)
    batches = BucketBatches(dataset, 2, seed=3)
    read = [list(loader_of(dataset, batches.through(2), num_workers=num_workers)) for num_workers in (0, 2)]
    for one, other in zip(*read, strict=True):
        assert (one.indices, one.epoch, one.skipped) == (other.indices, other.epoch, other.skipped)
        assert torch.equal(one.source, other.source)
    assert [batch.epoch for batch in read[0]] == [0, 0, 0, 1, 1, 1]
    assert any(batch.skipped for batch in read[0])
