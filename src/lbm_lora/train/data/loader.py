"""A torch DataLoader over batches of pairs."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader

from lbm_lora.train.data.batches import BucketBatches
from lbm_lora.train.data.dataset import PairDataset
from lbm_lora.train.data.sample import Batch, Draw, collate


def make_loader(
    dataset: PairDataset, batches: BucketBatches, *, num_workers: int = 0, pin_memory: bool = False
) -> DataLoader[Batch]:
    """The loader of a split. What it gives does not depend on `num_workers`.

    Args:
        batches: of the same data set; `set_epoch` and `start` take effect with the next iteration.
        num_workers: processes that read ahead; they live as long as the loader.
        pin_memory: put the batches into page-locked memory, for a CUDA device.
    """
    return loader_of(dataset, batches, num_workers=num_workers, pin_memory=pin_memory)


def loader_of(
    dataset: PairDataset, batches: Iterable[list[Draw]], *, num_workers: int = 0, pin_memory: bool = False
) -> DataLoader[Batch]:
    """The loader of any lists of draws."""
    made: DataLoader[Any] = DataLoader(  # torch's own type is that of the samples
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        # torch draws a seed for the workers: not from the global generator, whose state a resumed run restores
        generator=torch.Generator().manual_seed(0),
    )
    return made
