"""Cache of latents on disk, computed once.

A file holds the two latents of one pair at one size. Its name is a hash of everything that they depend on: the bytes of
both images, the size, and the VAE with its configuration. A changed image therefore gets new latents, runs and data
sets share the cache, and no entry is ever out of date.
"""

from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import xxhash
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from lbm_lora.blocks import is_finite
from lbm_lora.errors import DataError, ImageError
from lbm_lora.files import atomic_path, check_regular, check_writable
from lbm_lora.imaging.encoded import Size
from lbm_lora.progress import SILENT, Progress
from lbm_lora.training.data.batches import loader_of
from lbm_lora.training.data.dataset import PairDataset
from lbm_lora.training.data.pairs import Pair
from lbm_lora.training.data.sample import Draw

Latent = Float[Tensor, "channels h w"]
Encode = Callable[[Float[Tensor, "batch 3 height width"]], Float[Tensor, "batch channels h w"]]


class LatentCache:
    """Cache of latents by content. `fill_latents` fills it, and `PairDataset.with_latents` reads it.

    Args:
        cache_dir: folder whose subfolder `latents/` holds the files.
        vae: identity of the encoder: the fingerprint of its weights, and how it is used.

    Raises:
        OutputError: that subfolder is not there and cannot be made: it or `cache_dir` is a file, or a link to nothing.
    """

    def __init__(self, cache_dir: Path, vae: str) -> None:
        self.folder = cache_dir / "latents"
        if not self.folder.is_dir():
            check_writable(self.folder / "...", "the cached latents")
        self._vae = vae

    def path(self, pair: Pair, size: Size) -> Path:
        """Return the path of a pair's latents, whether or not it exists."""
        digest = xxhash.xxh3_128(f"{self._vae}\n{size[0]}x{size[1]} {len(pair.source)}\n".encode())
        digest.update(pair.source)
        digest.update(pair.target)
        name = digest.hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.safetensors"

    def load(self, pair: Pair, size: Size) -> tuple[Latent, Latent] | None:
        """Return the latents of source and target; None if they are not cached.

        Raises:
            DataError: the file is damaged.
        """
        path = self.path(pair, size)
        try:
            check_regular(path)
            tensors = load_file(path)
            source, target = tensors["source"], tensors["target"]
        except FileNotFoundError:
            return None
        except (SafetensorError, KeyError, OSError) as error:
            raise DataError(f"{path} is damaged: {error}. Delete it to compute its latents again.") from None
        if source.shape != target.shape or not all(_is_latent(one, size) for one in (source, target)):
            raise DataError(
                f"{path} is damaged: it does not hold finite latents of an image of {size[0]}x{size[1]}. Delete it to "
                "compute its latents again."
            )
        return source, target

    def save(self, path: Path, source: Latent, target: Latent) -> None:
        """Save the latents of a pair under the name from `path`.

        Raises:
            OutputError: the disk is full, or limits the size of files.
        """
        tensors = {name: value.detach().cpu().clone() for name, value in (("source", source), ("target", target))}
        with atomic_path(path) as temporary:
            temporary.write_bytes(save(tensors))  # `save_file` would not say in an OSError why the disk refuses it


def _is_latent(values: Tensor, size: Size) -> bool:
    """Whether a tensor can be the latent of an image of a size in pixels, width by height."""
    if values.dim() != 3 or not values.is_floating_point() or not is_finite(values):
        return False
    _, height, width = values.shape
    return height > 0 and width > 0 and size[1] * width == size[0] * height and size[1] % height == 0


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
    """Compute the latents missing from the cache, for each pair at every size that it may be resized to.

    Args:
        dataset: a data set without cached latents.
        encode: maps images in [-1, 1] to latents, each image independently.
        batch_size: images of one size to encode together.
        num_workers: worker processes that read images.
        rank, world: this process computes every `world`-th sample. All must finish before the cache is read.

    Returns:
        The number of encoded pairs.

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
            raise AssertionError("the data set must read images, not latents")
        latents = zip(batch.indices, encode(batch.source), encode(batch.target), strict=True)
        for draw, (index, source, target) in zip(draws, latents, strict=True):
            # the index differs from the draw's if the sample replaces a corrupt one
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
        return False  # it cannot be read, so its replacement's latents are needed


def _groups(draws: list[Draw], batch_size: int) -> Iterator[list[Draw]]:
    """Group neighbours of one size, at most `batch_size` in each group."""
    for _, members in groupby(draws, key=_size_of):
        alike = list(members)
        for first in range(0, len(alike), batch_size):
            yield alike[first : first + batch_size]


def _size_of(draw: Draw) -> Size:
    return draw.size
