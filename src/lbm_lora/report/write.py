"""A report as files in a folder: text for the terminal, JSON for programs, one page for people."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lbm_lora.atomic import atomic_path, write_text
from lbm_lora.ownership import COMPARISON, REPORT_LINE, REPORT_PAGE, is_ours
from lbm_lora.progress import warn
from lbm_lora.report.document import SCHEMA, Provenance, Report, report_json
from lbm_lora.report.html import render_html
from lbm_lora.report.images import ImageSet
from lbm_lora.report.text import full_text

_IMAGE = "comparison.png"
_MARKS = {
    ".txt": REPORT_LINE,
    ".json": f'\n{{\n "schema": "{SCHEMA.rpartition("/")[0]}/',
    ".html": REPORT_PAGE,
    ".png": COMPARISON,
}

LIBRARIES = ("lbm-lora", "torch", "safetensors", "diffusers", "numpy")
"""Libraries that results depend on."""


def write_report(
    report: Report,
    folder: Path | str,
    *,
    image: bytes | None = None,
    shown: Sequence[ImageSet] = (),
    provenance: Provenance | None = None,
) -> tuple[Path, ...]:
    """Write report.txt, report.json and report.html, and comparison.png if an image is given.

    Args:
        image: bytes of a PNG file that shows images side by side.
        shown: images for the page, one by one; those that matter most first.

    Returns:
        The paths, in this order.

    Raises:
        ImageError: the bytes of a shown image are not a PNG, JPEG or WebP file.
        OutputError: the folder cannot be made.
    """
    page = render_html(report, images=shown, provenance=provenance)
    paths = report_paths(Path(folder), has_image=image is not None)
    texts = (f"{full_text(report)}\n\n{REPORT_LINE}", report_json(report, provenance=provenance), page)
    for path, text in zip(paths, texts, strict=False):
        write_text(path, text)
    old = Path(folder) / _IMAGE
    if image is None and is_report(old):
        warn(f"{old} is of an earlier report: this one has no images.")
    if image is not None:
        with atomic_path(paths[-1]) as temporary:
            temporary.write_bytes(image)
    return paths


def report_paths(folder: Path, *, has_image: bool) -> tuple[Path, ...]:
    """Return the files of a report: as text, JSON and page, and the side-by-side image if there is one."""
    names = ("report.txt", "report.json", "report.html", *([_IMAGE] if has_image else []))
    return tuple(folder / name for name in names)


def is_report(path: Path) -> bool:
    """Return whether lbm-lora wrote a file of a report, and not one of another kind."""
    return is_ours(path, _MARKS[path.suffix])


def installed_versions(libraries: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Return the installed versions of those libraries, read without importing any."""
    found: dict[str, str] = {}
    for library in libraries:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
