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
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
import xxhash
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from lbm_lora.errors import ConfigError, DataError, ImageError, need_packages
from lbm_lora.imaging.buckets import FULL_SIZE, nearest_bucket
from lbm_lora.imaging.encoded import Size, decode_image, decode_mask
from lbm_lora.imaging.tensors import mask_to_tensor, to_tensor
from lbm_lora.progress import SILENT, Progress
from lbm_lora.shards import SHARD_PACKAGES
from lbm_lora.shards.samples import Found, Skipped, said_of
from lbm_lora.training.data.pairs import Keys, Pair, PairIndex, check_corrupt, find_pairs, make_index, same_shape
from lbm_lora.training.settings.data_keys import DataSettings

Split = Literal["train", "validation"]
ImageTensor = Float[Tensor, "3 height width"]
Latent = Float[Tensor, "channels h w"]


def uniform(what: str, *numbers: int) -> float:
    """Draw a number in [0, 1) for one purpose, determined by numbers such as seed, epoch and sample."""
    return (xxhash.xxh3_64_intdigest(f"{what} {' '.join(map(str, numbers))}".encode()) >> 11) / 2**53


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample of an epoch: all that its pixels depend on, so that a worker needs no state; `size` is theirs."""

    index: int
    epoch: int
    size: Size


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How the images of a split are resized.

    Attributes:
        image_size: square roots of the pixel budgets.
        probabilities: probability of each budget; they add up to 1.
        seed: seed of all draws.
        aspect_buckets: use the bucket nearest in aspect ratio; False: a square.
        flip: mirror half of the samples.
        random_crop: crop the image to the bucket's aspect ratio, instead of stretching it.
    """

    image_size: tuple[int, ...]
    probabilities: tuple[float, ...]
    seed: int
    aspect_buckets: bool = True
    flip: bool = False
    random_crop: bool = False

    @property
    def main_size(self) -> int:
        """Return the most probable budget; the largest if several are."""
        return max(zip(self.probabilities, self.image_size, strict=True))[1]

    def drawn_size(self, at: float) -> int:
        """Return the budget that a number in [0, 1) selects under the probabilities."""
        uppers = accumulate(self.probabilities)
        chosen = (size for size, upper in zip(self.image_size, uppers, strict=True) if at < upper)
        return next(chosen, self.main_size)

    def bucket(self, image: Size, image_size: int) -> Size:
        """Return the (width, height) that an image is resized to at a budget."""
        return _bucket(*(image if self.aspect_buckets else (1, 1)), image_size)

    def buckets(self, image: Size) -> tuple[Size, ...]:
        """Return each (width, height) that an image may be resized to."""
        used = [size for size, share in zip(self.image_size, self.probabilities, strict=True) if share > 0]
        return tuple(dict.fromkeys(self.bucket(image, size) for size in used))

    def prepared(self, draw: Draw, image: Image.Image, resample: Image.Resampling) -> Image.Image:
        """Return an image in the draw's size. All images of one sample are cropped and mirrored identically."""
        box = self._window(draw, image.size)
        if image.size != draw.size or box != (0, 0, *image.size):
            image = image.resize(draw.size, resample, box)
        mirrored = self.flip and uniform("flip", self.seed, draw.epoch, draw.index) < 0.5
        return ImageOps.mirror(image) if mirrored else image

    def _window(self, draw: Draw, image: Size) -> tuple[float, float, float, float]:
        """Return the part of an image that is used: all of it, or the largest window of the draw's aspect ratio."""
        width, height = image
        if not self.random_crop:
            return 0, 0, width, height
        scale = min(width / draw.size[0], height / draw.size[1])
        w, h = min(width, draw.size[0] * scale), min(height, draw.size[1] * scale)
        left = (width - w) * uniform("left", self.seed, draw.epoch, draw.index)
        top = (height - h) * uniform("top", self.seed, draw.epoch, draw.index)
        return left, top, min(width, left + w), min(height, top + h)


_bucket = lru_cache(maxsize=None)(nearest_bucket)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One pair of images of equal size.

    Attributes:
        index: index of the sample in the data set, the same in every run over the same data.
        key: its name: the path without role and extension, or `shard.tar/key`.
        source, target: the images; None if cached latents replace them.
        mask: 1 where a pixel is valid; None if the data set has no masks.
        latents: source and target latents, if cached.
        skipped: corrupt samples that this one replaces.
    """

    index: int
    key: str
    epoch: int
    source: ImageTensor | None
    target: ImageTensor | None
    mask: Float[Tensor, "1 height width"] | None
    latents: tuple[Latent, Latent] | None = None
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Samples of one size, stacked; the fields are those of `Sample`."""

    indices: tuple[int, ...]
    epoch: int
    source: Float[Tensor, "batch 3 height width"] | None
    target: Float[Tensor, "batch 3 height width"] | None
    mask: Float[Tensor, "batch 1 height width"] | None
    latents: tuple[Float[Tensor, "batch channels h w"], Float[Tensor, "batch channels h w"]] | None
    skipped: tuple[Skipped, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """Return the batch on a device."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory, from which it moves to a CUDA device asynchronously."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def _mapped(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            source=None if self.source is None else move(self.source),
            target=None if self.target is None else move(self.target),
            mask=None if self.mask is None else move(self.mask),
            latents=None if self.latents is None else (move(self.latents[0]), move(self.latents[1])),
        )


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one size and one epoch into a batch."""
    source, target = ([one.latents[side] for one in samples if one.latents is not None] for side in (0, 1))
    return Batch(
        indices=tuple(sample.index for sample in samples),
        epoch=samples[0].epoch,
        source=_stacked([sample.source for sample in samples]),
        target=_stacked([sample.target for sample in samples]),
        mask=_stacked([sample.mask for sample in samples]),
        latents=(torch.stack(source), torch.stack(target)) if source else None,
        skipped=tuple(item for sample in samples for item in sample.skipped),
    )


def _stacked(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """Stack a field, which all samples of a data set have, or none."""
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if present else None


@runtime_checkable
class Latents(Protocol):
    """Store of the pairs' latents, such as `latents.LatentCache`."""

    @property
    def folder(self) -> Path: ...
    def load(self, pair: Pair, size: Size) -> tuple[Latent, Latent] | None: ...


class PairDataset(Dataset[Sample]):
    """Data set of pairs by index.

    A damaged sample is replaced by the next one of the same shape, identically in every process. The replacement
    records this in `skipped`; the caller passes that to `count`, which keeps the total.

    Args:
        where: name of the data set, for error messages.
        max_corrupt: largest share of the data set that may be corrupt.

    Attributes:
        shapes: identifier of the aspect ratio that each sample is resized to.
    """

    def __init__(self, index: PairIndex, preparation: Preparation, *, where: str, max_corrupt: float) -> None:
        self.index, self.preparation, self.where, self.max_corrupt = index, preparation, where, max_corrupt
        self._latents: Latents | None = None
        self._with_images = True
        self._skipped = {item.key: item for item in index.skipped}
        self._total = len(index) + len(index.skipped)
        self.shapes = _shapes(index, preparation)
        self.count(())

    def __len__(self) -> int:
        return len(self.index)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Corrupt samples so far."""
        return tuple(self._skipped.values())

    def drawn_size(self, index: int, at: float) -> Size:
        """Return the (width, height) that a sample is resized to if `at`, in [0, 1), was drawn for its budget."""
        return self.preparation.bucket(self.index.size(index), self.preparation.drawn_size(at))

    def draw(self, index: int) -> Draw:
        """Return the draw of a sample for epoch 0 at the most probable budget."""
        return Draw(index, 0, self.preparation.bucket(self.index.size(index), self.preparation.main_size))

    def count(self, skipped: Iterable[Skipped]) -> None:
        """Count the corrupt samples that samples and batches report in `skipped`."""
        self._skipped |= {item.key: item for item in skipped}
        check_corrupt(self.where, self.skipped, self._total, self.max_corrupt)

    def with_latents(self, latents: Latents, *, images: bool) -> "PairDataset":
        """Return the same pairs with their latents, which must all be cached; with images too for a pixel loss."""
        made = copy(self)
        made._latents, made._with_images = latents, images
        return made

    def __getitem__(self, draw: Draw | int) -> Sample:
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

    def _read(self, draw: Draw) -> Sample:
        pair = self.index.read(draw.index)
        latents = self._latents.load(pair, draw.size) if self._latents else None
        source = target = mask = None
        if self._with_images or latents is None:
            source = self._image(pair.source, pair, draw, "source")
            target = self._image(pair.target, pair, draw, "target")
        if self._latents and latents is None:
            size = f"{draw.size[0]}x{draw.size[1]}"
            raise DataError(f"{self.where}: {self._latents.folder} has no latents for {pair.key} at {size}.")
        if pair.mask is not None:
            # a mask keeps its stored values: nothing may be interpolated between valid and invalid
            stored = decode_mask(pair.mask, pair.key)
            mask = mask_to_tensor(self._fitted(stored, pair, draw, Image.Resampling.NEAREST))[None]
        return Sample(
            index=draw.index,
            key=pair.key,
            epoch=draw.epoch,
            source=source,
            target=target,
            mask=mask,
            latents=latents,
        )

    def _image(self, data: bytes, pair: Pair, draw: Draw, role: str) -> ImageTensor:
        try:
            image = decode_image(data, pair.key)
            return to_tensor([self._fitted(image, pair, draw, Image.Resampling.LANCZOS)])[0]
        except ImageError as error:
            raise ImageError(f"{role}: {error}") from None

    def _fitted(self, image: Image.Image, pair: Pair, draw: Draw, resample: Image.Resampling) -> Image.Image:
        if not same_shape(image.size, pair.size):
            raise ImageError(f"it is {image.width}x{image.height}, but was {pair.size[0]}x{pair.size[1]} before")
        return self.preparation.prepared(draw, image, resample)


def _shapes(index: PairIndex, preparation: Preparation) -> NDArray[np.int64]:
    sizes, inverse = np.unique(index.sizes, axis=0, return_inverse=True)
    buckets = [preparation.bucket((width, height), FULL_SIZE) for width, height in sizes.tolist()]
    numbers = {bucket: number for number, bucket in enumerate(sorted(set(buckets)))}
    return np.array([numbers[bucket] for bucket in buckets], dtype=np.int64)[inverse.reshape(-1)]


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
    elif shards is not None:
        where = shards[0] if len(shards) == 1 else f"{shards[0]} and {len(shards) - 1} more"
        index = make_index(_in_shards(settings, shards, progress), keys)
    else:
        raise ConfigError(f"there are no {split} pairs. Set {split}_shards or {split}_folder.")
    if index.skipped:
        progress.note(f"{where}: {said_of(index.skipped, len(index) + len(index.skipped))}.")
    preparation = Preparation(
        image_size=settings.image_size,
        probabilities=settings.image_size_prob or (1 / len(settings.image_size),) * len(settings.image_size),
        seed=seed,
        aspect_buckets=settings.aspect_buckets,
        flip=settings.flip,
        random_crop=settings.random_crop,
    )
    if split == "validation":
        size = (preparation.main_size,)
        preparation = replace(preparation, image_size=size, probabilities=(1.0,), flip=False, random_crop=False)
    return PairDataset(index, preparation, where=where, max_corrupt=settings.max_corrupt)


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
