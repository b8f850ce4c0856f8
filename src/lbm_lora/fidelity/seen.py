"""Images that a LoRA was calibrated or refined on, among those that it is measured on: there its numbers flatter it."""

import math
from collections.abc import Sequence

from lbm_lora.adapter import Adapter
from lbm_lora.adapter.metadata import parsed
from lbm_lora.errors import listing, plural
from lbm_lora.fidelity.outputs import ImageComparison, summarize
from lbm_lora.imaging.digests import unpacked


def seen_of(adapter: Adapter, digests: Sequence[str]) -> tuple[bool, ...]:
    """For each image, by its digest, whether the LoRA was made with it: as far as its file says so.

    Files made before digests were kept say nothing, and a file keeps the first 512.
    """
    facts = adapter.metadata.facts
    calibrated = unpacked(parsed(facts, "lbm_lora_settings").get("calibration_images"))
    refined = unpacked(parsed(facts, "lbm_lora_refinement").get("images"))
    return tuple(digest in calibrated | refined for digest in digests)


def remark_on_seen(seen: Sequence[bool], images: Sequence[ImageComparison], variant: str) -> str:
    """Return a remark if the LoRA was calibrated on some of the scored images, else an empty text."""
    known = [image.image for image, is_seen in zip(images, seen, strict=True) if is_seen]
    if not known:
        return ""
    held = [image for image, is_seen in zip(images, seen, strict=True) if not is_seen]
    verb = "was" if len(known) == 1 else "were"
    said = (
        f"{len(known)} of {plural(len(images), 'image')} {verb} used to make the LoRA ({listing(known)}): these "
        "numbers flatter it. "
    )
    if not held:
        return f"{said}Measure on images that it was not calibrated or refined on."
    summary = next(entry for entry in summarize(held) if entry.variant == variant)
    mean = summary.mean_psnr
    shown = "equal images" if mean == math.inf else f"a mean PSNR of {mean:.2f} dB"
    return f"{said}Held out {plural(len(held), 'image')}: {shown} at {plural(summary.steps, 'step')}."
