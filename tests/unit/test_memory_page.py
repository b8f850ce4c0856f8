"""The measured rows of docs/memory.md are those of docs/performance.md."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
PROCESSES = {
    "`base`, both twins": ("base", "base"),
    "`extract`, rank 32/16": ("extract", "extract"),
    "`extract`, full rank": ("full_rank", "full rank"),
    "`validate`, weights": ("validate", "validate"),
    "`fuse`": ("fuse", "fuse"),
    "`calibrate`, four images of 256 x 256, every timestep": ("calibrated", "calibrate"),
    "`extract --calibration --no_check`": ("calibrated", "extract --calibration --no_check"),
    "`extract --calibration`, with its check": ("calibrated", "extract --calibration"),
    "`train`, three steps, 256 x 256, batch of one, rank 32/16": ("train", "train"),
    "`refine`, two steps, one image of 256 x 256": ("refine", "refine"),
}
"""What a row of the page is called -> theme and process of the benchmarks."""


def rows(text: str) -> list[list[str]]:
    """The cells of each row of the tables in a text."""
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line[:2] == "| "]


def test_the_rows_are_those_of_the_benchmarks() -> None:
    page = (DOCS / "memory.md").read_text(encoding="utf-8")
    performance = (DOCS / "performance.md").read_text(encoding="utf-8")
    measured = re.search(r"<!-- memory:begin.*?-->(.*?)<!-- memory:end -->", page, flags=re.DOTALL)
    assert measured
    shown = {work: (time, memory) for work, time, memory in rows(measured[1])[2:]}
    benchmarks = {tuple(row[:2]): (row[3], row[5]) for row in rows(performance) if len(row) == 9}
    assert shown == {work: benchmarks[process] for work, process in PROCESSES.items()}


def test_the_step_of_the_network_is_that_of_the_benchmarks() -> None:
    performance = (DOCS / "performance.md").read_text(encoding="utf-8")
    raw = next(row[1] for row in rows(performance) if row[0] == "raw call of the network")
    assert f"One step of the network at 512 x 512 takes {raw} there" in (DOCS / "memory.md").read_text(encoding="utf-8")
