"""Which samples form a batch, in which order: a function of (seed, epoch) alone.

All samples of a batch have one size. A *global* batch is what all processes see in one step: `batch_size * world`
samples of one size, cut into one contiguous part for each rank. So two processes with a batch of 4 see in every step
the samples that one process with a batch of 8 sees, and all of them make equally many steps, whatever the number of
shards.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from lbm_lora.imaging.encoded import Size
from lbm_lora.signals import leave_to_parent
from lbm_lora.training.data.dataset import PairDataset
from lbm_lora.training.data.sample import Batch, Draw, collate, uniform

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class GlobalBatch:
    """The samples of one step over all ranks; those behind the first `fresh` only fill it up."""

    size: Size
    indices: Indices
    fresh: int


class BucketBatches:
    """The batches of one rank.

    Samples of one shape go together, and each global batch draws its size, where there are several.

    In training (`cover=False`) samples that do not fill a global batch are left out of the epoch, others in every
    epoch; a shape with fewer samples than a global batch gets one batch in which they repeat. In validation
    (`cover=True`) every sample comes once, and the last global batch of a shape is only filled up to a multiple of the
    ranks, with samples marked as `repeated`.

    Args:
        dataset: whose samples are drawn.
        batch_size: samples of a batch of one rank.
        seed: of the order.
        rank: of this process, from 0.
        world: number of processes.
        shuffle: draw the order anew in every epoch; else it is the data set's.
        cover: every sample exactly once, instead of full batches only.
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
        self._dataset = dataset
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._world = world
        self._shuffle = shuffle
        self._cover = cover
        self._planned: tuple[int, list[GlobalBatch]] | None = None

    @property
    def steps(self) -> int:
        """Batches of an epoch, the same number in each."""
        return len(self._plan(0))

    def epoch(self, number: int, *, start: int = 0) -> Iterator[list[Draw]]:
        """The batches of one epoch, from the batch `start` on."""
        for batch in self._plan(number)[start:]:
            share = len(batch.indices) // self._world
            first = self._rank * share
            yield [
                Draw(int(index), number, batch.size, repeated=place >= batch.fresh)
                for place, index in enumerate(batch.indices[first : first + share], start=first)
            ]

    def through(self, epochs: int, *, epoch: int = 0, batch: int = 0) -> Iterator[list[Draw]]:
        """The batches of one epoch after the other, from a position on: a run goes on in the middle of an epoch."""
        for number in range(epoch, epochs):
            yield from self.epoch(number, start=batch if number == epoch else 0)

    def notes(self) -> list[str]:
        """What the user should know: samples that an epoch leaves out, and shapes whose samples repeat."""
        plan = self._plan(0)
        seen = sum(batch.fresh for batch in plan)
        lines: list[str] = []
        if seen < len(self._dataset):
            left_out = f"each epoch leaves out {len(self._dataset) - seen} of {len(self._dataset)} samples"
            others = ", others each time" if self._shuffle else ""
            lines.append(f"{left_out}, which do not fill a batch of one shape{others}.")
        for batch in plan:
            if batch.fresh < len(batch.indices) and not self._cover:
                width, height = self._dataset.draw(int(batch.indices[0])).size
                lines.append(
                    f"the shape of {width}x{height} has {batch.fresh} of the {len(batch.indices)} samples of a batch: "
                    "they repeat in it."
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
        """The global batches of the samples of one shape."""
        members = np.flatnonzero(self._dataset.shapes == shape)
        if self._shuffle:
            members = members[_permutation(len(members), "samples", self._seed, epoch, shape)]
        full = self._batch_size * self._world
        for number, first in enumerate(range(0, len(members), full)):
            part = members[first : first + full]
            size = self._dataset.drawn_size(int(part[0]), uniform("size", self._seed, epoch, shape, number))
            if len(part) == full:
                yield GlobalBatch(size, part, full)
            elif self._cover:
                yield GlobalBatch(size, np.resize(part, -(-len(part) // self._world) * self._world), len(part))
            elif first == 0:
                yield GlobalBatch(size, np.resize(part, full), len(part))


def _permutation(count: int, what: str, *numbers: int) -> Indices:
    generator = torch.Generator().manual_seed(int(uniform(what, *numbers) * 2**53))
    return torch.randperm(count, generator=generator).numpy()


def loader_of(
    dataset: PairDataset, batches: Iterable[list[Draw]], *, num_workers: int = 0, pin_memory: bool = False
) -> DataLoader[Batch]:
    """A torch DataLoader over lists of draws. What it gives does not depend on `num_workers`.

    Args:
        batches: each list is a batch, of one size and one epoch.
        num_workers: processes that read ahead; they live as long as the loader.
        pin_memory: put the batches into page-locked memory, for a CUDA device.
    """
    made: DataLoader[Any] = DataLoader(  # torch's own type is that of the samples
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        worker_init_fn=leave_to_parent,
        # torch draws a seed for the workers: not from the global generator, whose state a resumed run restores
        generator=torch.Generator().manual_seed(0),
    )
    return made
