"""A report as files in a folder: text for the terminal, JSON for programs, one page for people."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lbm_lora.fidelity.outputs import ImageSet
from lbm_lora.files import MARK, atomic_path, is_ours, write_text
from lbm_lora.progress import warn
from lbm_lora.report.document import Provenance, Report, report_json
from lbm_lora.report.page import render_html
from lbm_lora.report.text import full_text

REPORT_LINE = f"# {MARK}: report\n"
"""The mark of report.txt: its last line."""

_IMAGE = "comparison.png"
_LIBRARIES = ("lbm-lora", "torch", "safetensors", "diffusers", "numpy")  # what results depend on


def write_report(
    report: Report,
    folder: Path | str,
    *,
    image: bytes | None = None,
    shown: Sequence[ImageSet] = (),
    provenance: Provenance | None = None,
) -> tuple[Path, ...]:
    """Write report.txt, report.json and report.html, and comparison.png if an image is given; return their paths.

    Args:
        image: bytes of a PNG file that shows images side by side.
        shown: images for the page, one by one; those that matter most first.

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
    if image is None and is_ours(old):
        warn(f"{old} is of an earlier report: this one has no images.")
    if image is not None:
        with atomic_path(old) as temporary:
            temporary.write_bytes(image)
    return paths


def report_paths(folder: Path, *, has_image: bool) -> tuple[Path, ...]:
    """Return the files of a report: as text, JSON and page, and the side-by-side image if there is one."""
    names = ("report.txt", "report.json", "report.html", *([_IMAGE] if has_image else []))
    return tuple(folder / name for name in names)


def installed_versions() -> dict[str, str]:
    """Return the installed versions of the libraries that results depend on, read without importing any."""
    found: dict[str, str] = {}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
