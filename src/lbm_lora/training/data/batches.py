"""Batches and their order: a function of (seed, epoch) alone.

All samples of a batch have one size. A *global* batch is what all processes see in one step: `batch_size * world`
samples of one size, split into one contiguous part per rank. Two processes with a batch of 4 therefore see the same
samples in every step as one process with a batch of 8, and all processes take the same number of steps, whatever the
number of shards.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from lbm_lora.errors import ImageError
from lbm_lora.imaging.encoded import Size
from lbm_lora.progress import SILENT, Progress
from lbm_lora.runtime import leave_to_parent
from lbm_lora.training.data.dataset import Batch, Draw, Images, PairDataset, collate, uniform
from lbm_lora.training.data.latents import LatentCache, Latents

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class GlobalBatch:
    """Samples of one step over all ranks; those after the first `fresh` only fill it up."""

    size: Size
    indices: Indices
    fresh: int


class BucketBatches:
    """Batches of one rank.

    Samples of one shape are batched together, and each global batch draws its size if there are several.

    Samples that do not fill a global batch are skipped, different ones in every epoch; a shape with fewer samples than
    a global batch gets one batch in which they repeat. With `cover`, for one process, every sample appears once.

    Args:
        batch_size: samples per batch and rank.
        rank, world: this process, from 0, of how many.
    """

    def __init__(
        self,
        dataset: PairDataset,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
        cover: bool = False,
    ) -> None:
        self._dataset, self._batch_size, self._seed = dataset, batch_size, seed
        self._rank, self._world = rank, world
        self._shuffle, self._cover = shuffle, cover
        self._planned: tuple[int, list[GlobalBatch]] | None = None

    @property
    def steps(self) -> int:
        """Number of batches per epoch, the same in each."""
        return len(self._plan(0))

    def epoch(self, number: int, *, start: int = 0) -> Iterator[list[Draw]]:
        """Yield the batches of one epoch, from batch `start` on."""
        for batch in self._plan(number)[start:]:
            share = len(batch.indices) // self._world
            first = self._rank * share
            yield [Draw(int(index), number, batch.size) for index in batch.indices[first : first + share]]

    def through(self, epochs: int, *, epoch: int = 0, batch: int = 0) -> Iterator[list[Draw]]:
        """Yield the batches of consecutive epochs from a position on, so that a run can resume within an epoch."""
        for number in range(epoch, epochs):
            yield from self.epoch(number, start=batch if number == epoch else 0)

    def notes(self) -> list[str]:
        """Return notes for the user: samples that an epoch skips, and shapes whose samples repeat."""
        plan = self._plan(0)
        count, lines = len(self._dataset), list[str]()
        skipped = count - sum(batch.fresh for batch in plan)
        if skipped:
            others = ", different ones each time." if self._shuffle else "."
            lines.append(f"each epoch skips {skipped} of {count} samples that do not fill a batch of one shape{others}")
        for batch in plan:
            if batch.fresh < len(batch.indices):
                width, height = self._dataset.draw(int(batch.indices[0])).size
                lines.append(
                    f"shape {width}x{height} has only {batch.fresh} of the {len(batch.indices)} samples of a batch: "
                    "they repeat."
                )
        return lines

    def _plan(self, epoch: int) -> list[GlobalBatch]:
        if self._planned is None or self._planned[0] != epoch:
            batches = [batch for shape in np.unique(self._dataset.shapes) for batch in self._cut(int(shape), epoch)]
            if self._shuffle:
                order = _permutation(len(batches), "batches", self._seed, epoch)
                batches = [batches[place] for place in order.tolist()]
            self._planned = epoch, batches
        return self._planned[1]

    def _cut(self, shape: int, epoch: int) -> Iterator[GlobalBatch]:
        members = np.flatnonzero(self._dataset.shapes == shape)
        if self._shuffle:
            members = members[_permutation(len(members), "samples", self._seed, epoch, shape)]
        full = self._batch_size * self._world
        for number, first in enumerate(range(0, len(members), full)):
            part = members[first : first + full]
            size = self._dataset.drawn_size(int(part[0]), uniform("size", self._seed, epoch, shape, number))
            if len(part) == full or self._cover:
                yield GlobalBatch(size, part, len(part))
            elif first == 0:
                yield GlobalBatch(size, np.resize(part, full), len(part))


def _permutation(count: int, what: str, *numbers: int) -> Indices:
    generator = torch.Generator().manual_seed(int(uniform(what, *numbers) * 2**53))
    return torch.randperm(count, generator=generator).numpy()


def loader_of(
    dataset: PairDataset, batches: Iterable[list[Draw]], *, num_workers: int = 0, pin_memory: bool = False
) -> DataLoader[Batch]:
    """Return a torch DataLoader over lists of draws, each a batch of one size and one epoch.

    Its batches do not depend on `num_workers`, the processes that read ahead.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        worker_init_fn=leave_to_parent,
        # torch draws a seed for the workers; it must not come from the global generator, whose state resuming restores
        generator=torch.Generator().manual_seed(0),
    )


def fill_latents(
    dataset: PairDataset,
    cache: LatentCache,
    encode: Callable[[Images], Latents],
    *,
    num_workers: int = 0,
    rank: int = 0,
    world: int = 1,
    progress: Progress = SILENT,
) -> None:
    """Compute the latents missing from the cache, for each pair at every size that it may be resized to.

    Args:
        encode: maps images in [-1, 1] to latents, each image independently.
        rank, world: this process computes every `world`-th sample. All must finish before the cache is read.
    """
    progress.start(len(range(rank, len(dataset), world)), "looking for cached latents")
    missing = sorted(_missing(dataset, cache, rank, world, progress), key=lambda draw: draw.size)
    progress.start(len(missing), "encoding latents")
    loader = loader_of(dataset, [[draw] for draw in missing], num_workers=num_workers)
    for draw, batch in zip(missing, loader, strict=True):
        dataset.count(batch.skipped)
        assert batch.source is not None
        assert batch.target is not None
        # the index differs from the draw's if the sample replaces a corrupt one
        path = cache.path(dataset.index.record(batch.indices[0]), draw.size)
        if not path.exists():
            cache.save(path, encode(batch.source)[0], encode(batch.target)[0])
        progress.advance()


def _missing(dataset: PairDataset, cache: LatentCache, rank: int, world: int, progress: Progress) -> Iterator[Draw]:
    for index in range(rank, len(dataset), world):
        progress.advance()
        for size in dataset.sizes(index):
            try:
                is_cached = cache.path(dataset.index.record(index), size).exists()
            except ImageError:
                is_cached = False  # it cannot be read, so its replacement's latents are needed
            if not is_cached:
                yield Draw(index, 0, size)
