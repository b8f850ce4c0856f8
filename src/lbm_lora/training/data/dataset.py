"""The pairs of one split as a torch dataset: a draw of a sample becomes tensors, and samples become batches.

Every random draw is a function of (seed, epoch, sample), so that it depends neither on the reading order nor on the
process. Images are fp32 in [-1, 1], masks fp32 in [0, 1].
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import xxhash
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from lbm_lora.errors import DataError, ImageError, need_packages
from lbm_lora.imaging.buckets import FULL_SIZE, nearest_bucket
from lbm_lora.imaging.encoded import Size, decode_image, decode_mask
from lbm_lora.imaging.tensors import mask_to_tensor, to_tensor
from lbm_lora.progress import SILENT, Progress
from lbm_lora.shards import SHARD_PACKAGES
from lbm_lora.shards.samples import Found, Skipped, said_of
from lbm_lora.training.data.latents import LatentCache, Latents
from lbm_lora.training.data.pairs import Keys, PairIndex, Record, check_corrupt, find_pairs, make_index, same_shape
from lbm_lora.training.settings import DataSettings

Split = Literal["train", "validation"]
Images = Float[Tensor, "batch 3 height width"]


def uniform(what: str, *numbers: int) -> float:
    """Draw a number in [0, 1) for one purpose, determined by numbers such as seed, epoch and sample."""
    return (xxhash.xxh3_64_intdigest(f"{what} {' '.join(map(str, numbers))}".encode()) >> 11) / 2**53


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample of an epoch: all that its pixels depend on, so that a worker needs no state; `size` is theirs."""

    index: int
    epoch: int
    size: Size


_nearest = lru_cache(maxsize=None)(nearest_bucket)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Pairs of images of one size, one or several of one epoch.

    Attributes:
        indices: indices of the samples in the data set, the same in every run over the same data.
        source, target: the images; None if cached latents replace them.
        mask: 1 where a pixel is valid; None if the data set has no masks.
        latents: source and target latents, if cached.
        skipped: corrupt samples that these replace.
    """

    indices: tuple[int, ...]
    epoch: int
    source: Images | None
    target: Images | None
    mask: Float[Tensor, "batch 1 height width"] | None
    latents: tuple[Latents, Latents] | None = None
    skipped: tuple[Skipped, ...] = ()

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """Return the batch on a device."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory, from which it moves to a CUDA device asynchronously."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def _mapped(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        def moved(value: Tensor | None) -> Tensor | None:
            return None if value is None else move(value)

        latents = self.latents and (move(self.latents[0]), move(self.latents[1]))
        source, target, mask = moved(self.source), moved(self.target), moved(self.mask)
        return replace(self, source=source, target=target, mask=mask, latents=latents)


def collate(batches: Sequence[Batch]) -> Batch:
    """Return batches of one size and one epoch as one. A field is in all batches of a data set, or in none."""

    def joined(tensors: Iterable[Tensor | None]) -> Tensor | None:
        there = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(there) if there else None

    source, target = (joined(one.latents and one.latents[side] for one in batches) for side in (0, 1))
    return Batch(
        indices=tuple(index for one in batches for index in one.indices),
        epoch=batches[0].epoch,
        source=joined(one.source for one in batches),
        target=joined(one.target for one in batches),
        mask=joined(one.mask for one in batches),
        latents=None if source is None or target is None else (source, target),
        skipped=tuple(item for one in batches for item in one.skipped),
    )


class PairDataset(Dataset[Batch]):
    """Data set of pairs by index, each a batch of one sample, resized by the keys of the training file.

    A damaged sample is replaced by the next one of the same shape, identically in every process. The replacement
    records this in `skipped`; the caller passes that to `count`, which keeps the total.

    Args:
        seed: seed of all draws.
        where: name of the data set, for error messages.

    Attributes:
        shapes: identifier of the aspect ratio that each sample is resized to.
    """

    def __init__(self, index: PairIndex, keys: DataSettings, *, seed: int, where: str) -> None:
        self.index, self.where = index, where
        self._keys, self._seed = keys, seed
        self._shares = keys.image_size_prob or (1 / len(keys.image_size),) * len(keys.image_size)
        self.main_size = max(zip(self._shares, keys.image_size, strict=True))[1]  # of the most probable, the largest
        self._latents: LatentCache | None = None
        self._with_images = True
        self._skipped = {item.key: item for item in index.skipped}
        self._total = len(index) + len(index.skipped)
        sizes, inverse = np.unique(index.sizes, axis=0, return_inverse=True)
        buckets = [self._bucket((width, height), FULL_SIZE) for width, height in sizes.tolist()]
        numbers = {bucket: number for number, bucket in enumerate(sorted(set(buckets)))}
        self.shapes: NDArray[np.int64] = np.array([numbers[bucket] for bucket in buckets])[inverse.reshape(-1)]
        self.count(())

    def __len__(self) -> int:
        return len(self.index)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Corrupt samples so far."""
        return tuple(self._skipped.values())

    def _bucket(self, image: Size, image_size: int) -> Size:
        return _nearest(*(image if self._keys.aspect_buckets else (1, 1)), image_size)

    def sizes(self, index: int) -> tuple[Size, ...]:
        """Return each (width, height) that a sample may be resized to."""
        used = [size for size, share in zip(self._keys.image_size, self._shares, strict=True) if share > 0]
        return tuple(dict.fromkeys(self._bucket(self.index.size(index), size) for size in used))

    def drawn_size(self, index: int, at: float) -> Size:
        """Return the (width, height) that a sample is resized to if `at`, in [0, 1), was drawn for its size."""
        uppers = accumulate(self._shares)
        drawn = (size for size, upper in zip(self._keys.image_size, uppers, strict=True) if at < upper)
        return self._bucket(self.index.size(index), next(drawn, self.main_size))

    def draw(self, index: int) -> Draw:
        """Return the draw of a sample for epoch 0 at the most probable size."""
        return Draw(index, 0, self._bucket(self.index.size(index), self.main_size))

    def count(self, skipped: Iterable[Skipped]) -> None:
        """Count the corrupt samples that batches report in `skipped`."""
        self._skipped |= {item.key: item for item in skipped}
        check_corrupt(self.where, self.skipped, self._total, self._keys.max_corrupt)

    def with_latents(self, latents: LatentCache, *, images: bool) -> "PairDataset":
        """Return the same pairs with their latents, which must all be cached; with images too for a pixel loss."""
        made = copy(self)
        made._latents, made._with_images = latents, images
        return made

    def __getitem__(self, draw: Draw | int) -> Batch:
        """Return the sample of a draw; for an index, the sample of its `draw`."""
        if isinstance(draw, int):
            draw = self.draw(draw)
        skipped: list[Skipped] = []
        for index in self._candidates(draw.index):
            try:
                sample = self._read(replace(draw, index=index))
            except ImageError as error:
                skipped.append(Skipped(self.index.keys[index], str(error)))
            else:
                return replace(sample, skipped=tuple(skipped))
        raise DataError(f"{self.where}: no sample can be read; the first is {skipped[0].key} ({skipped[0].reason}).")

    def _candidates(self, index: int) -> Iterator[int]:
        """Yield the index, then its possible replacements: the next ones of its shape, then any."""
        yield index
        following = np.roll(np.arange(len(self)), -index)[1:]
        alike = self.shapes[following] == self.shapes[index]
        yield from following[alike].tolist()
        yield from following[~alike].tolist()

    def _read(self, draw: Draw) -> Batch:
        pair = self.index.record(draw.index)
        latents = self._latents.load(pair, draw.size) if self._latents else None
        source = target = mask = None
        if self._with_images or latents is None:  # a corrupt pair has none, and is replaced
            data = pair.source.read(), pair.target.read()
            source = self._image(data[0], pair, draw, "source")
            target = self._image(data[1], pair, draw, "target")
        if self._latents and latents is None:
            size = f"{draw.size[0]}x{draw.size[1]}"
            raise DataError(f"{self.where}: {self._latents.folder} has no latents for {pair.key} at {size}.")
        if pair.mask is not None:
            # a mask keeps its stored values: nothing may be interpolated between valid and invalid
            stored = decode_mask(pair.mask.read(), pair.key)
            mask = mask_to_tensor(self._fitted(stored, pair, draw, Image.Resampling.NEAREST))[None, None]
        return Batch(indices=(draw.index,), epoch=draw.epoch, source=source, target=target, mask=mask, latents=latents)

    def _image(self, data: bytes, pair: Record, draw: Draw, role: str) -> Images:
        try:
            return to_tensor([self._fitted(decode_image(data, pair.key), pair, draw, Image.Resampling.LANCZOS)])
        except ImageError as error:
            raise ImageError(f"{role}: {error}") from None

    def _fitted(self, image: Image.Image, pair: Record, draw: Draw, resample: Image.Resampling) -> Image.Image:
        """Return an image in the draw's size. All images of one sample are cropped and mirrored identically."""
        if not same_shape(image.size, pair.size):
            raise ImageError(f"it is {image.width}x{image.height}, but was {pair.size[0]}x{pair.size[1]} before")
        box = self._window(draw, image.size)
        if image.size != draw.size or box != (0, 0, *image.size):
            image = image.resize(draw.size, resample, box)
        mirrored = self._keys.flip and uniform("flip", self._seed, draw.epoch, draw.index) < 0.5
        return ImageOps.mirror(image) if mirrored else image

    def _window(self, draw: Draw, image: Size) -> tuple[float, float, float, float]:
        """Return the part of an image that is used: all of it, or the largest window of the draw's aspect ratio."""
        width, height = image
        if not self._keys.random_crop:
            return 0, 0, width, height
        scale = min(width / draw.size[0], height / draw.size[1])
        w, h = min(width, draw.size[0] * scale), min(height, draw.size[1] * scale)
        left = (width - w) * uniform("left", self._seed, draw.epoch, draw.index)
        top = (height - h) * uniform("top", self._seed, draw.epoch, draw.index)
        return left, top, min(width, left + w), min(height, top + h)


def open_data(settings: DataSettings, split: Split, *, seed: int, progress: Progress = SILENT) -> PairDataset:
    """Open the pairs of one split: download remote ones, list them, and read their headers.

    Training pairs are augmented according to the settings. Validation pairs are only stretched to the most probable
    size, so that they are the same in every run.

    Args:
        seed: seed for sizes and augmentations.
    """
    shards, folder = settings.train_shards, settings.train_folder
    if split == "validation":
        shards, folder = settings.validation_shards, settings.validation_folder
    keys = Keys(source=settings.source_key, target=settings.target_key, mask=settings.mask_key)
    if folder is not None:
        found, where = find_pairs(folder, keys), str(folder)
        progress.start(len(found), f"reading {folder.name}")
        index = make_index(found, keys, progress)
    else:
        assert shards is not None
        where = shards[0] if len(shards) == 1 else f"{shards[0]} and {len(shards) - 1} more"
        index = make_index(_in_shards(settings, shards, progress), keys)
    if index.skipped:
        progress.note(f"{where}: {said_of(index.skipped, len(index) + len(index.skipped))}.")
    made = PairDataset(index, settings, seed=seed, where=where)
    if split == "train":
        return made
    size = (made.main_size,)
    fixed = {"image_size": size, "image_size_prob": None, "flip": False, "random_crop": False}
    return PairDataset(index, settings.model_copy(update=fixed), seed=seed, where=where)


def _in_shards(settings: DataSettings, patterns: tuple[str, ...], progress: Progress) -> Iterator[Found]:
    need_packages("reading shards", SHARD_PACKAGES, "train")
    from lbm_lora.shards.fetch import local_shards
    from lbm_lora.shards.tar import expand_shards, read_shard

    shards = expand_shards(patterns)
    paths = local_shards(shards, cache_dir=settings.cache_dir, allow_pipe=settings.allow_pipe, progress=progress)
    names = [Path(shard).name for shard in shards]
    if len(set(names)) < len(names):
        names = shards
    progress.start(len(shards), "reading shards")
    for path, name in zip(paths, names, strict=True):
        yield from read_shard(path, name)
        progress.advance()
