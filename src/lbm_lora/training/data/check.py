"""Read every pixel of a data set, with the same code as training."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from lbm_lora.imaging.encoded import Size
from lbm_lora.progress import SILENT, Progress
from lbm_lora.shards.samples import Skipped
from lbm_lora.training.data.batches import BucketBatches, loader_of
from lbm_lora.training.data.dataset import PairDataset


@dataclass(frozen=True, kw_only=True)
class SizeCount:
    """Number of samples of one size."""

    width: int
    height: int
    samples: int


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Findings for one data set.

    Attributes:
        pairs: usable pairs.
        skipped: samples that cannot be used.
        sizes: sizes of the source images, the most frequent first.
        buckets: sizes that training resizes them to at the most probable size, the most frequent first.
        steps: optimizer steps per epoch, without accumulation.
        mask_share: mean share of valid pixels in the masks.
    """

    where: str
    pairs: int
    nbytes: int
    skipped: tuple[Skipped, ...]
    sizes: tuple[SizeCount, ...]
    buckets: tuple[SizeCount, ...]
    steps: int
    notes: tuple[str, ...]
    masks: int
    mask_share: float | None

    @property
    def corrupt_share(self) -> float:
        """Share of the samples that cannot be used."""
        return len(self.skipped) / (self.pairs + len(self.skipped))


def read_through(
    dataset: PairDataset, *, batch_size: int, cover: bool = False, num_workers: int = 0, progress: Progress = SILENT
) -> Checked:
    """Decode every pair and report; reading stops at the data set's `max_corrupt`.

    Args:
        batch_size: over all processes.
    """
    progress.start(len(dataset), f"reading {dataset.where}")
    draws = [dataset.draw(index) for index in range(len(dataset))]
    shares: list[float] = []
    broken: set[int] = set()
    for draw, batch in zip(draws, loader_of(dataset, [[draw] for draw in draws], num_workers=num_workers), strict=True):
        dataset.count(batch.skipped)
        if batch.indices != (draw.index,):
            broken.add(draw.index)
        elif batch.mask is not None:
            shares.append(float(batch.mask.mean()))
        progress.advance()
    batches = BucketBatches(dataset, batch_size, seed=0, cover=cover)
    return Checked(
        where=dataset.where,
        pairs=len(dataset) - len(broken),
        nbytes=dataset.index.nbytes,
        skipped=dataset.skipped,
        sizes=_counts((w, h) for w, h in dataset.index.sizes.tolist()),
        buckets=_counts(draw.size for draw in draws),
        steps=batches.steps,
        notes=tuple(batches.notes()),
        masks=len(shares),
        mask_share=sum(shares) / len(shares) if shares else None,
    )


def _counts(sizes: Iterable[Size]) -> tuple[SizeCount, ...]:
    return tuple(SizeCount(width=w, height=h, samples=count) for (w, h), count in Counter(sizes).most_common())
