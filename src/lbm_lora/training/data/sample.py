"""One pair as tensors: its random draws, how its images are resized, and batches.

Every random draw is a function of (seed, epoch, sample), so that it depends neither on the reading order nor on the
process. Images are fp32 in [-1, 1], masks fp32 in [0, 1], as elsewhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate

import torch
import xxhash
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from lbm_lora.imaging.buckets import nearest_bucket
from lbm_lora.imaging.encoded import Size
from lbm_lora.shards.samples import Skipped

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""


def uniform(what: str, *numbers: int) -> float:
    """Draw a number in [0, 1) for one purpose, determined by numbers such as seed, epoch and sample."""
    return (xxhash.xxh3_64_intdigest(f"{what} {' '.join(map(str, numbers))}".encode()) >> 11) / 2**53


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample of an epoch: everything that its pixels depend on, so that a worker needs no state."""

    index: int
    epoch: int
    size: Size
    """(width, height) that the images are resized to."""
    repeated: bool = False
    """Whether it only fills up a batch and appears elsewhere in the epoch, so that metrics should not count it."""


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

    def _window(self, draw: Draw, image: Size) -> Box:
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
        epoch: epoch that it was drawn for.
        source, target: the images; None if cached latents replace them.
        mask: 1 where a pixel is valid; None if the data set has no masks.
        latents: source and target latents, if cached.
        repeated: see `Draw`.
        skipped: corrupt samples that this one replaces.
    """

    index: int
    key: str
    epoch: int
    source: Float[Tensor, "3 height width"] | None
    target: Float[Tensor, "3 height width"] | None
    mask: Float[Tensor, "1 height width"] | None
    latents: tuple[Float[Tensor, "channels h w"], Float[Tensor, "channels h w"]] | None = None
    repeated: bool = False
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Samples of one size, stacked; the fields are those of `Sample`."""

    indices: tuple[int, ...]
    keys: tuple[str, ...]
    epoch: int
    source: Float[Tensor, "batch 3 height width"] | None
    target: Float[Tensor, "batch 3 height width"] | None
    mask: Float[Tensor, "batch 1 height width"] | None
    latents: tuple[Float[Tensor, "batch channels h w"], Float[Tensor, "batch channels h w"]] | None
    repeated: tuple[bool, ...]
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
    pairs = [sample.latents for sample in samples if sample.latents is not None]
    return Batch(
        indices=tuple(sample.index for sample in samples),
        keys=tuple(sample.key for sample in samples),
        epoch=samples[0].epoch,
        source=_stacked([sample.source for sample in samples]),
        target=_stacked([sample.target for sample in samples]),
        mask=_stacked([sample.mask for sample in samples]),
        latents=(torch.stack([source for source, _ in pairs]), torch.stack([target for _, target in pairs]))
        if pairs
        else None,
        repeated=tuple(sample.repeated for sample in samples),
        skipped=tuple(item for sample in samples for item in sample.skipped),
    )


def _stacked(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """Stack a field, which all samples of a data set have, or none."""
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if present else None
