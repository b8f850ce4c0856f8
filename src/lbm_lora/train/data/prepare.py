"""From two pictures to two tensors of one size: which window, mirrored or not.

Everything that is drawn is a function of (seed, epoch, sample), so that it depends neither on the order of reading
nor on the process that reads.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import xxhash
from PIL import Image, ImageOps

from lbm_lora.imaging.buckets import nearest_bucket
from lbm_lora.imaging.encoded import Size
from lbm_lora.train.data.sample import Draw

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, pixels."""


def uniform(what: str, *numbers: int) -> float:
    """A number in [0, 1) that is drawn for one purpose and some numbers, such as seed, epoch and sample."""
    return (xxhash.xxh3_64_intdigest(f"{what} {' '.join(map(str, numbers))}".encode()) >> 11) / 2**53


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How the pictures of a split are brought to size.

    Attributes:
        image_size: square roots of the pixel budgets.
        probabilities: of each budget; they add up to 1.
        seed: of all that is drawn.
        aspect_buckets: take the bucket nearest in aspect ratio; False: a square.
        flip: mirror half of the samples.
        random_crop: cut the picture to the bucket's aspect ratio, instead of stretching it.
    """

    image_size: tuple[int, ...]
    probabilities: tuple[float, ...]
    seed: int
    aspect_buckets: bool = True
    flip: bool = False
    random_crop: bool = False

    @property
    def main_size(self) -> int:
        """The most probable budget, the largest of them where several are."""
        return max(zip(self.probabilities, self.image_size, strict=True))[1]

    def drawn_size(self, at: float) -> int:
        """The budget that a number in [0, 1) stands for, with the probabilities."""
        uppers = accumulate(self.probabilities)
        chosen = (size for size, upper in zip(self.image_size, uppers, strict=True) if at < upper)
        return next(chosen, self.main_size)

    def bucket(self, picture: Size, image_size: int) -> Size:
        """The (width, height) that a picture is brought to at a budget."""
        return _bucket(*(picture if self.aspect_buckets else (1, 1)), image_size)

    def buckets(self, picture: Size) -> tuple[Size, ...]:
        """Each (width, height) that a picture may be brought to."""
        used = [size for size, share in zip(self.image_size, self.probabilities, strict=True) if share > 0]
        return tuple(dict.fromkeys(self.bucket(picture, size) for size in used))

    def prepared(self, draw: Draw, image: Image.Image, resample: Image.Resampling) -> Image.Image:
        """A picture in the draw's size. All pictures of one sample are cut and mirrored alike."""
        box = self._window(draw, image.size)
        if image.size != draw.size or box != (0, 0, *image.size):
            image = image.resize(draw.size, resample, box)
        mirrored = self.flip and uniform("flip", self.seed, draw.epoch, draw.index) < 0.5
        return ImageOps.mirror(image) if mirrored else image

    def _window(self, draw: Draw, picture: Size) -> Box:
        """The part of a picture that is shown: all of it, or the largest window of the draw's aspect ratio."""
        width, height = picture
        if not self.random_crop:
            return 0, 0, width, height
        scale = min(width / draw.size[0], height / draw.size[1])
        w, h = min(width, draw.size[0] * scale), min(height, draw.size[1] * scale)
        left = (width - w) * uniform("left", self.seed, draw.epoch, draw.index)
        top = (height - h) * uniform("top", self.seed, draw.epoch, draw.index)
        return left, top, min(width, left + w), min(height, top + h)


_bucket = lru_cache(maxsize=None)(nearest_bucket)
