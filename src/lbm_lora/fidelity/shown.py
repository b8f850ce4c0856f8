"""The images that a comparison shows: one by one for the page, and side by side as one file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from lbm_lora.fidelity.outputs import ImageSet
from lbm_lora.files import MARK
from lbm_lora.imaging.grids import comparison_grid
from lbm_lora.imaging.image_file import encode_image
from lbm_lora.imaging.tensors import to_images

COMPARISON = f"{MARK}: comparison"
"""The mark of a report's image, which shows the results of several networks."""
DIFFERENCE = 8
"""How much stronger than it is the difference of two images is shown."""

_TILE = 512  # longer side of an image, pixels


@dataclass(frozen=True, kw_only=True)
class ShownImage:
    """What all models make of one source, in one size.

    Attributes:
        image: file name of the source, without its folder.
        views: what is seen (source, base, base + LoRA, further LoRAs, tuned) -> image, mode `RGB`.
        psnrs: variant -> PSNR to the reference's image, dB.
        variant, reference: the views whose difference is shown.
        difference: `DIFFERENCE` times the difference, around grey.
    """

    image: str
    views: Mapping[str, Image.Image]
    psnrs: Mapping[str, float]
    variant: str
    reference: str
    difference: Image.Image

    def encoded(self) -> ImageSet:
        """The same as PNG files, pixel for pixel."""
        return ImageSet(
            image=self.image,
            width=self.difference.width,
            height=self.difference.height,
            views={name: _png(view) for name, view in self.views.items()},
            psnrs=self.psnrs,
            difference=_png(self.difference),
            difference_title=(
                f"{self.variant} minus {self.reference}, {DIFFERENCE} times amplified; grey: no difference"
            ),
        )


def tile(image: Tensor) -> Image.Image:
    """An image of values in [-1, 1] (what is outside is clamped), reduced where it is large."""
    shown = to_images(image[None])[0]
    shown.thumbnail((_TILE, _TILE), Image.Resampling.LANCZOS)
    return shown


def side_by_side(shown: Sequence[ShownImage]) -> bytes:
    """One PNG file with a row for each image: source, base, the LoRA, tuned, and the difference of these two."""
    views = [name for name in shown[0].views if name in ("source", "base", shown[0].variant, shown[0].reference)]
    labels = [*views, f"difference from {shown[0].reference}\n{DIFFERENCE} times, grey: none"]
    rows = [[*(image.views[name] for name in views), image.difference] for image in shown]
    return _png(comparison_grid(labels, rows))


def _png(image: Image.Image) -> bytes:
    return encode_image(image, ".png", mark=COMPARISON, optimize=True)
