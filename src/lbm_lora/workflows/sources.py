"""Source images of a command, from a text or a list."""

from collections.abc import Sequence
from pathlib import Path


def image_paths(images: str | tuple[str, ...] | None) -> Sequence[Path]:
    """Return the images of a text or a list, none of them read yet; no images for None."""
    if images is None:
        return ()
    from lbm_lora.imaging.paths import expand_sources

    return expand_sources(images)


def checked_image_paths(images: str | tuple[str, ...] | None) -> Sequence[Path]:
    """Return the images of a text or a list, each read once; no images for None."""
    if images is None:
        return ()
    from lbm_lora.imaging.paths import readable_sources

    return readable_sources(images)
