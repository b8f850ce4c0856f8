"""A report as files in a folder: text for the terminal, JSON for programs, one page for people."""

from pathlib import Path

from lbm_lora.atomic import atomic_path, write_text
from lbm_lora.report.html import render_html
from lbm_lora.report.json_file import report_json
from lbm_lora.report.provenance import Provenance
from lbm_lora.report.schema import Report
from lbm_lora.report.text import full_text


def write_report(
    report: Report,
    folder: Path | str,
    *,
    picture: bytes | None = None,
    caption: str = "source, base, base + LoRA, tuned",
    provenance: Provenance | None = None,
) -> tuple[Path, ...]:
    """Write report.txt, report.json and report.html, and comparison.png where a picture is given.

    Args:
        picture: bytes of a PNG file, shown in the page as well.
        caption: what the picture shows.

    Returns:
        The paths, in this order.

    Raises:
        ImageError: the picture is none.
        OutputError: the folder cannot be made.
    """
    folder = Path(folder)
    page = render_html(report, pictures={caption: picture} if picture else None, provenance=provenance)
    texts = {
        folder / "report.txt": full_text(report) + "\n",
        folder / "report.json": report_json(report, provenance=provenance),
        folder / "report.html": page,
    }
    for path, text in texts.items():
        write_text(path, text)
    if picture is None:
        return tuple(texts)
    picture_path = folder / "comparison.png"
    with atomic_path(picture_path) as temporary:
        temporary.write_bytes(picture)
    return (*texts, picture_path)
