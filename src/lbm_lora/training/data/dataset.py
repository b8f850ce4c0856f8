"""The pairs of one split as a torch dataset that maps a draw to a sample."""

from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lbm_lora.errors import DataError, ImageError
from lbm_lora.imaging.buckets import FULL_SIZE
from lbm_lora.imaging.encoded import Size, decode_image, decode_mask
from lbm_lora.imaging.tensors import mask_to_tensor, to_tensor
from lbm_lora.shards.samples import Skipped
from lbm_lora.training.data.index import PairIndex, check_corrupt
from lbm_lora.training.data.pairs import Pair, same_shape
from lbm_lora.training.data.sample import Draw, Preparation, Sample

ImageTensor = Float[Tensor, "3 height width"]
Latent = Float[Tensor, "channels h w"]


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
        index: where the pairs are.
        preparation: how they are resized.
        where: name of the data set, for error messages.
        max_corrupt: largest share of the data set that may be corrupt.

    Raises:
        DataError: there are no pairs, or more than `max_corrupt` of them are corrupt.
    """

    def __init__(self, index: PairIndex, preparation: Preparation, *, where: str, max_corrupt: float) -> None:
        self.index = index
        self.preparation = preparation
        self.where = where
        self.max_corrupt = max_corrupt
        self._latents: Latents | None = None
        self._with_images = True
        self._skipped = {item.key: item for item in index.skipped}
        self._total = len(index) + len(index.skipped)
        self.shapes = _shapes(index, preparation)
        """Identifier of the aspect ratio that each sample is resized to."""
        self.count(())

    def __len__(self) -> int:
        return len(self.index)

    @property
    def sizes(self) -> list[Size]:
        """Return (width, height) of every source image as stored, upright."""
        return [self.index.size(index) for index in range(len(self))]

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Corrupt samples found so far."""
        return tuple(self._skipped.values())

    def drawn_size(self, index: int, at: float) -> Size:
        """Return the (width, height) that a sample is resized to if `at`, in [0, 1), was drawn for its budget."""
        return self.preparation.bucket(self.index.size(index), self.preparation.drawn_size(at))

    def draw(self, index: int) -> Draw:
        """Return the draw of a sample for epoch 0 at the most probable budget."""
        return Draw(index, 0, self.preparation.bucket(self.index.size(index), self.preparation.main_size))

    def count(self, skipped: Iterable[Skipped]) -> None:
        """Count the corrupt samples that samples and batches report in `skipped`.

        Raises:
            DataError: more than `max_corrupt` of the data set is corrupt.
        """
        self._skipped |= {item.key: item for item in skipped}
        check_corrupt(self.where, self.skipped, self._total, self.max_corrupt)

    def with_latents(self, latents: Latents, *, images: bool) -> "PairDataset":
        """Return the same pairs with their latents, which must all be cached.

        Args:
            images: whether samples also hold the images, for a pixel loss.
        """
        made = copy(self)
        made._latents, made._with_images = latents, images
        return made

    def __getitem__(self, draw: Draw | int) -> Sample:
        """Return the sample of a draw; for an index, the sample of its `draw`.

        Raises:
            DataError: no sample can be read, or its latents are not cached.
        """
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
        source = target = None
        if self._with_images or latents is None:
            source = self._image(pair.source, pair, draw, "source")
            target = self._image(pair.target, pair, draw, "target")
        if self._latents and latents is None:
            size = f"{draw.size[0]}x{draw.size[1]}"
            raise DataError(f"{self.where}: {self._latents.folder} has no latents for {pair.key} at {size}.")
        return Sample(
            index=draw.index,
            key=pair.key,
            epoch=draw.epoch,
            source=source,
            target=target,
            mask=None if pair.mask is None else self._mask(pair.mask, pair, draw),
            latents=latents,
            repeated=draw.repeated,
        )

    def _image(self, data: bytes, pair: Pair, draw: Draw, role: str) -> ImageTensor:
        try:
            return to_tensor([self._fitted(decode_image(data, pair.key), pair, draw)])[0]
        except ImageError as error:
            raise ImageError(f"{role}: {error}") from None

    def _mask(self, data: bytes, pair: Pair, draw: Draw) -> Float[Tensor, "1 height width"]:
        # a mask keeps its stored values: nothing may be interpolated between valid and invalid
        mask = self._fitted(decode_mask(data, pair.key), pair, draw, Image.Resampling.NEAREST)
        return mask_to_tensor(mask)[None]

    def _fitted(
        self, image: Image.Image, pair: Pair, draw: Draw, resample: Image.Resampling = Image.Resampling.LANCZOS
    ) -> Image.Image:
        if not same_shape(image.size, pair.size):
            raise ImageError(f"it is {image.width}x{image.height}, but was {pair.size[0]}x{pair.size[1]} before")
        return self.preparation.prepared(draw, image, resample)


def _shapes(index: PairIndex, preparation: Preparation) -> NDArray[np.int64]:
    sizes, inverse = np.unique(index.sizes, axis=0, return_inverse=True)
    buckets = [preparation.bucket((width, height), FULL_SIZE) for width, height in sizes.tolist()]
    numbers = {bucket: number for number, bucket in enumerate(sorted(set(buckets)))}
    return np.array([numbers[bucket] for bucket in buckets], dtype=np.int64)[inverse.reshape(-1)]
