"""`python -m benchmarks.fidelity [run | page]`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from tyro.conf import Positional

from benchmarks.command import MINI_PAIR
from benchmarks.fidelity.numbers import RANKS
from benchmarks.fidelity.page import write_page
from benchmarks.results import FOLDER, ROOT, WORK, command_of, write_result
from lbm_lora import bundled
from lbm_lora.imaging.paths import expand_sources

MOST = 64  # images to calibrate on
MOST_ALIKE = 36  # other images of the same folder to measure on


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure sets of LoRAs of the bundled mini model (run), or write the page of the newest result (page).

    Statistics, LoRAs and measurements stay in the work folder and are reused: an interrupted run resumes, and a new
    version needs an empty folder.
    """

    what: Positional[Literal["run", "page"]] = "run"
    work: Path = WORK / "fidelity"  # folder for the LoRAs and their measurements, 600 MB
    calibration_images: Path | None = None
    """Folder or glob of sources: calibrate on 64 of them, evenly spread, and compare predictions with what is measured
    on 36 others. Default: the bundled photos."""
    only: tuple[str, ...] = ()  # make only these sets; existing sets in --work are also shown
    threads: int = 1  # torch threads; more would not speed up a network this small
    results: Path = FOLDER / "fidelity"  # folder of result files
    to: Path = ROOT / "docs" / "fidelity.md"  # page to write


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write result and page, or only the page."""
    options = tyro.cli(Options, args=argv, prog="python -m benchmarks.fidelity", use_underscores=True)
    if options.what == "run":
        print(_measure(options))
    print(write_page(options.results, options.to))
    return 0


def _measure(options: Options) -> Path:
    """Measure, and return the result file."""
    from benchmarks.fidelity.sets import RECIPES, Sets, spread  # slow to import

    unknown = sorted({*options.only} - RECIPES.keys())
    if unknown:
        raise SystemExit(f"error: --only {unknown[0]}: the sets are {', '.join(RECIPES)}.")
    held_out = sorted(bundled.PAIRS.glob("*.source.png"))
    images, source = sorted(bundled.PHOTOS.glob("*.jpg")), "the bundled photos"
    if options.calibration_images is not None:
        images, source = list(expand_sources(str(options.calibration_images))), "renders of the training set"
    if {path.name for path in images} & {path.name for path in held_out}:
        raise SystemExit("error: --calibration_images contains held-out images. Leave them out.")
    torch.set_num_threads(options.threads)
    calibration = spread(images, MOST)
    alike = spread([path for path in images if path not in calibration], MOST_ALIKE)
    sets = Sets(options.work.resolve(), calibration=calibration, held_out=held_out, alike=alike)
    asked = {*options.only, "plain", *(path.stem for path in options.work.glob("*.json"))}
    return write_result(
        options.results,
        "fidelity",
        calibration={"source": source, "images": len(calibration), "alike": len(alike)},
        held=[path.name for path in held_out],
        base=sets.measured("base"),
        sets={name: sets.measured(name) for name in RECIPES if name in asked or not options.only},
        calibration_seconds=sets.calibration_seconds(),
        command=command_of("benchmarks.fidelity", options),
        settings={"ranks": RANKS, "files": "plain bf16, calibrated fp16, int8 or auto", "network": "fp32", "steps": 1},
        pair=MINI_PAIR,
        cores=options.threads,
    )


if __name__ == "__main__":
    sys.exit(main())
