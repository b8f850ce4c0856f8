"""Headline of the page if images were measured: the distance of the LoRA's images from the reference's."""

import math
from dataclasses import dataclass

from lbm_lora.report.outputs import LoraFile, OutputComparison, VariantSummary
from lbm_lora.report.values import Band

IMAGE_BANDS: tuple[tuple[Band, float, str], ...] = (
    ("excellent", 40.0, "no visible difference, even when flipping between the two"),
    ("good", 30.0, "small differences, visible when flipping between the two"),
    ("poor", 20.0, "differences visible side by side"),
    ("noise", -math.inf, "another image"),
)
"""Rules of thumb for the PSNR of an image to the reference's: name, lower bound in dB, visible effect."""

_LEAST, _MOST = 10.0, 60.0  # dB, the ends of the scale


@dataclass(frozen=True, kw_only=True)
class ImageHeadline:
    """The verdict in images, at the fewest steps.

    Attributes:
        lora: scores of the LoRA, the variant after the base.
        base: scores of the base alone; None if nothing else was measured.
        file: the LoRA's file, if known.
        band, meaning: those of the worst image, so that a good mean hides nothing.
    """

    lora: VariantSummary
    base: VariantSummary | None
    file: LoraFile | None
    band: Band
    meaning: str

    @property
    def is_calibrated(self) -> bool:
        """Whether the file says that it was made for the output, not for the weights."""
        return self.file is not None and self.file.method == "calibrated"


def image_headline(outputs: OutputComparison) -> ImageHeadline:
    """Sum up a comparison that has at least one variant."""
    summary = [entry for entry in outputs.summary if entry.steps == outputs.steps[0]]
    lora = summary[min(1, len(summary) - 1)]
    band, meaning = band_of_image(lora.worst_psnr)
    return ImageHeadline(
        lora=lora,
        base=summary[0] if len(summary) > 1 else None,
        file=next((file for file in outputs.loras if file.variant == lora.variant), None),
        band=band,
        meaning=meaning,
    )


def band_of_image(psnr: float) -> tuple[Band, str]:
    """The band of a PSNR in dB, and what is seen there; equal images have infinitely many dB."""
    if psnr == math.inf:
        return "excellent", "equal in every value"
    return next((name, meaning) for name, bound, meaning in IMAGE_BANDS if not psnr < bound)


def decibel_place(psnr: float) -> float:
    """Where a PSNR stands on a scale from 10 to 60 dB, in percent from its left end; beyond it, at the end."""
    return 100 * (min(max(psnr, _LEAST), _MOST) - _LEAST) / (_MOST - _LEAST)
