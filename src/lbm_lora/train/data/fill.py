"""Encode every pair of a data set once."""

from collections.abc import Callable, Iterator
from itertools import groupby

from jaxtyping import Float
from torch import Tensor

from lbm_lora.errors import ImageError
from lbm_lora.imaging.encoded import Size
from lbm_lora.progress import SILENT, Progress
from lbm_lora.train.data.dataset import PairDataset
from lbm_lora.train.data.latents import LatentCache
from lbm_lora.train.data.loader import loader_of
from lbm_lora.train.data.sample import Draw

Encode = Callable[[Float[Tensor, "batch 3 height width"]], Float[Tensor, "batch channels h w"]]


def fill_latents(
    dataset: PairDataset,
    cache: LatentCache,
    encode: Encode,
    *,
    batch_size: int = 1,
    num_workers: int = 0,
    rank: int = 0,
    world: int = 1,
    progress: Progress = SILENT,
) -> int:
    """Compute the latents that are not in the cache yet, at every size that it may be brought to.

    Args:
        dataset: without a cache of its own.
        encode: pictures in [-1, 1] -> latents, each of its own picture alone.
        batch_size: pictures of one size that are encoded together.
        num_workers: processes that read pictures.
        rank, world: this process computes every `world`-th sample. All must be done before the cache is read.

    Returns:
        How many pairs were encoded.

    Raises:
        DataError: more than `max_corrupt` of the data set is corrupt.
        OutputError: the cache cannot be written.
    """
    progress.start(len(range(rank, len(dataset), world)), "looking for cached latents")
    missing = sorted(_missing(dataset, cache, rank, world, progress), key=_size_of)
    groups = list(_groups(missing, batch_size))
    progress.start(len(missing), "encoding latents")
    encoded = 0
    for draws, batch in zip(groups, loader_of(dataset, groups, num_workers=num_workers), strict=True):
        dataset.count(batch.skipped)
        if batch.source is None or batch.target is None:
            raise AssertionError("this data set reads latents, not pictures")
        latents = zip(batch.indices, encode(batch.source), encode(batch.target), strict=True)
        for draw, (index, source, target) in zip(draws, latents, strict=True):
            # the index is not the draw's where it stands in for a corrupt sample
            path = cache.path(dataset.index.read(index), draw.size)
            if not path.exists():
                cache.save(path, source, target)
                encoded += 1
        progress.advance(len(draws))
    return encoded


def _missing(dataset: PairDataset, cache: LatentCache, rank: int, world: int, progress: Progress) -> Iterator[Draw]:
    for index in range(rank, len(dataset), world):
        progress.advance()
        for size in dataset.preparation.buckets(dataset.index.size(index)):
            if not _is_cached(dataset, cache, index, size):
                yield Draw(index, 0, size)


def _is_cached(dataset: PairDataset, cache: LatentCache, index: int, size: Size) -> bool:
    try:
        return cache.path(dataset.index.read(index), size).exists()
    except ImageError:
        return False  # it cannot be read: then the latents of the sample that takes its place are needed


def _groups(draws: list[Draw], batch_size: int) -> Iterator[list[Draw]]:
    """Neighbours of one size, at most `batch_size` of them together."""
    for _, members in groupby(draws, key=_size_of):
        alike = list(members)
        for first in range(0, len(alike), batch_size):
            yield alike[first : first + batch_size]


def _size_of(draw: Draw) -> Size:
    return draw.size
