"""An inspection as one self-contained HTML page, in the style of the validation report."""

from pathlib import Path

from lbm_lora.atomic import write_text
from lbm_lora.report.html import asset, environment
from lbm_lora.report.inspection.heat import HeatMap, difference_map, norm_map, spectrum_map
from lbm_lora.report.inspection.relation_wording import difference_lines, fit_lines
from lbm_lora.report.inspection.relations import Inspection
from lbm_lora.report.inspection.values import FileFacts
from lbm_lora.report.inspection.wording import file_facts_of, file_line, header_lines

PAGE = "inspect.html"


def write_page(inspection: Inspection, folder: Path) -> Path:
    """Write `inspect.html` to a folder, which is made if it is missing, and return its path.

    Raises:
        OutputError: the folder cannot be made.
    """
    path = folder / PAGE
    write_text(path, render_page(inspection))
    return path


def render_page(inspection: Inspection) -> str:
    """The page as text: the facts of each file, how two differ, and the blocks as heat maps."""
    from markupsafe import Markup

    difference = inspection.difference
    sections = [_section(file) for file in (inspection.file, inspection.other) if file is not None]
    return (
        environment()
        .get_template("inspect.html")
        .render(
            inspection=inspection,
            sections=sections,
            relation=difference_lines(difference)
            if difference
            else fit_lines(inspection.fit)
            if inspection.fit
            else [],
            difference=difference,
            difference_maps=[difference_map(difference.rows)] if difference and not difference.is_same else [],
            largest=sorted(difference.rows, key=lambda row: -row.norm)[:20] if difference else [],
            style=Markup(asset("report.css") + asset("inspect.css")),
        )
    )


def _section(file: FileFacts) -> dict[str, object]:
    adapter, checkpoint = file.adapter, file.checkpoint
    maps: list[HeatMap] = []
    if adapter is not None and adapter.deltas:
        maps = [norm_map(adapter.deltas, "change"), *([spectrum_map(adapter.deltas)] if adapter.modules else [])]
    elif checkpoint is not None:
        maps = [norm_map(checkpoint.tensors, "weights")]
    found = adapter or checkpoint
    return {
        "file": file,
        "name": file.path.name or str(file.path),
        "line": file_line(file),
        "facts": file_facts_of(file),
        "header": header_lines(file.header),
        "blocks": found.blocks if found else (),
        "has_ranks": adapter is not None,
        "longest": max((block.share for block in found.blocks), default=0.0) or 1.0 if found else 1.0,
        "maps": maps,
        "readers": adapter.readers if adapter else (),
        "truncations": adapter.truncations if adapter else (),
    }
