"""How near base + LoRA is to the tuned model, by method and size: `python -m benchmarks.fidelity --work DIR`.

Runs on the bundled mini model and its held-out pairs. Statistics, LoRAs and measurements stay in the work folder, one
file for each set, and are not made again: a run that was stopped goes on, and a new version needs an empty folder.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.fidelity_loras import RANKS, Fold, Loras, Set
from benchmarks.fidelity_page import write_page
from benchmarks.fidelity_statistics import diagonal, inputs_alone, one_number
from benchmarks.measure import ROOT
from benchmarks.results import FOLDER, write_result
from lbm_lora import bundled
from lbm_lora.adapter import load_adapter, module_bytes
from lbm_lora.calibrate import Statistics
from lbm_lora.imaging.paths import expand_sources

RESULTS = FOLDER / "fidelity"
PAGE = ROOT / "docs" / "fidelity.md"
MOST = 64  # calibration pictures
COUNTS = (1, 4, 16)
BELOW = (0.85, 0.7, 0.5, 0.25, 0.0)  # of the header's entries of all matrices: sizes under that of rank 1

Sets = dict[str, Set]


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    if options.what == "page":
        print(write_page(options.results, options.to))
        return 0
    torch.set_num_threads(options.threads)
    folds, source = _folds(options.work.resolve(), options.calibration_images)
    loras = [Loras(fold) for fold in folds]
    made = [measure(one, options.only) for one in loras]
    path = write_result(
        options.results,
        "fidelity",
        {
            "machine": machine.machine(options.threads),
            "versions": machine.versions(),
            "calibration": {"source": source, "pictures": [len(fold.calibration) for fold in folds]},
            "refinement": {"pictures": [len(fold.refinement) for fold in folds]},
            "held": [picture.name for fold in folds for picture in fold.held],
            "calibration_seconds": loras[0].calibration_seconds(),
            "base": _joined([one.base_outputs() for one in loras]),
            "sets": {name: _joined([sets[name] for sets in made]) for name in made[0]},
        },
        command="python -m benchmarks.fidelity"
        + (" --calibration_images RENDERS" if options.calibration_images else ""),
        settings={"ranks": RANKS, "files": "plain bf16, calibrated fp16 or int8", "network": "fp32", "steps": 1},
        pair={"base": "the bundled backbone's exact base, bf16", "tuned": "the bundled mini model, bf16"},
        slug=machine.slug(options.threads),
    )
    print(path)
    print(write_page(options.results, options.to))
    return 0


def measure(loras: Loras, only: Sequence[str]) -> Sets:
    """The sets of LoRAs of one fold: those that are asked for, and those that were made before."""
    plain = loras.plain()
    makers = _makers(loras, plain)
    unknown = sorted({*only} - {*makers})
    if unknown:
        raise SystemExit(f"error: --only {unknown[0]}: the sets are {', '.join(makers)}.")
    return {name: make() for name, make in makers.items() if not only or name in only or loras.has(name)}


def _makers(loras: Loras, plain: Set) -> dict[str, Callable[[], Set]]:
    """Every set by its name: how it is made, or read where it was made before."""
    pictures = loras.fold.calibration
    photos = sorted(bundled.PHOTOS.glob("*.jpg"))
    sizes = [entry["nbytes"] for entry in plain["files"].values()]

    def full() -> Path:
        return loras.statistics("full", pictures)

    def changed(name: str, change: Callable[[Statistics], Statistics]) -> Callable[[], Set]:
        return lambda: loras.sized(name, sizes, calibration=loras.derived(name, full(), change), check=False)

    def others(name: str, chosen: Sequence[Path], **settings: Any) -> Callable[[], Set]:
        return lambda: loras.sized(name, sizes, calibration=loras.statistics(name, chosen, **settings), check=False)

    counts = [count for count in COUNTS if count < len(pictures)]
    return {
        "plain": lambda: plain,
        "plain_convs": loras.plain_convs,
        "full": lambda: loras.sized("full", sizes, calibration=full()),
        "small": lambda: loras.sized("small", _small(loras, plain), calibration=full()),
        "int8": lambda: loras.sized("int8", sizes, calibration=full(), save_precision="int8"),
        "int8_small": lambda: loras.sized(
            "int8_small", _small(loras, plain), calibration=full(), save_precision="int8"
        ),
        "refined": lambda: loras.refined("refined", "full"),
        "refined_small": lambda: loras.refined("refined_small", "small"),
        "refined_int8": lambda: loras.refined("refined_int8", "int8"),
        "plain_global": lambda: loras.sized("plain_global", sizes),
        "inputs": changed("inputs", inputs_alone),
        "number": changed("number", one_number),
        **{f"images_{count}": others(f"images_{count}", _spread(pictures, count)) for count in counts},
        "photos": others("photos", photos),
        "bf16": lambda: loras.sized("bf16", sizes, calibration=full(), save_precision="bf16", check=False),
        "diagonal_inputs": changed("diagonal_inputs", diagonal(inputs=True, outputs=False)),
        "diagonal_outputs": changed("diagonal_outputs", diagonal(inputs=False, outputs=True)),
        "diagonal": changed("diagonal", diagonal(inputs=True, outputs=True)),
        "sketch": others("sketch", pictures, dense_up_to=0, sketch_rank=16),
    }


def _small(loras: Loras, plain: Set) -> list[int]:
    """Sizes below that of rank 1, where all that a file must hold leaves little for matrices."""
    first = plain["files"][f"r{RANKS[0]}"]
    adapter = load_adapter(loras.fold.folder / f"plain_r{RANKS[0]}.safetensors")
    shapes = {name: module.shape for name, module in adapter.modules.items()}
    entries = sum(module_bytes(adapter.prefix, name, shape, 0, torch.bfloat16) for name, shape in shapes.items())
    return [first["nbytes"] - first["matrix_bytes"] - round(share * entries) for share in BELOW]


def _folds(work: Path, calibration_images: str | None) -> tuple[list[Fold], str]:
    """Pictures to calibrate on and to measure on, never the same, and what the former are."""
    pairs = sorted(bundled.PAIRS.glob("*.source.png"))
    if calibration_images is not None:
        found = expand_sources(calibration_images)
        names = {path.name for path in pairs}
        if any(path.name in names for path in found):
            raise SystemExit("error: --calibration_images holds pictures that are measured on. Leave them out.")
        fold = Fold(folder=work / "renders", calibration=_spread(found, MOST), refinement=found, held=tuple(pairs))
        return [fold], "renders of the training set"
    objects = sorted({path.name.partition("-")[0] for path in pairs})
    photos = sorted(bundled.PHOTOS.glob("*.jpg"))
    folds: list[Fold] = []
    for name in objects:
        held = tuple(path for path in pairs if path.name.startswith(f"{name}-"))
        others = (*photos, *(path for path in pairs if path not in held))
        folds.append(Fold(folder=work / f"without-{name}", calibration=others, refinement=others, held=held))
    return folds, "the bundled photos, and the held-out pairs of the object that is not measured"


def _spread(pictures: Sequence[Path], count: int) -> tuple[Path, ...]:
    """So many pictures, evenly spread over the list."""
    count = min(count, len(pictures))
    return tuple(pictures[index * len(pictures) // count] for index in range(count))


def _joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One set over all folds: lists of pictures one after the other, times added up; the rest of the first fold."""
    first, *further = parts
    joined: dict[str, Any] = dict(first)
    for part in further:
        for key, value in part.items():
            if isinstance(value, list) or key == "seconds":
                joined[key] = joined[key] + value
            elif key == "files":
                joined[key] = {word: _joined([joined[key][word], entry]) for word, entry in value.items()}
    return joined


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fidelity", description=__doc__)
    add = parser.add_argument
    add("what", nargs="?", choices=("run", "page"), default="run", help="measure, or write the page of the last result")
    add("--work", type=Path, default=ROOT / "benchmarks" / "work" / "fidelity", help="folder for 600 MB of files")
    add(
        "--calibration_images",
        metavar="FOLDER|GLOB",
        help="sources; 64 of them, evenly spread, are calibrated on, and all are refined on; default: the bundled "
        "photos and pairs, leaving out one object in turn, which is measured",
    )
    add("--only", nargs="+", default=(), metavar="SET", help="make no other sets; those in the work folder count too")
    add("--threads", type=int, default=1, help="of torch; several wait for each other in a network this small")
    add("--results", type=Path, default=RESULTS, help="folder of result files")
    add("--to", type=Path, default=PAGE, help="the page; default docs/fidelity.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
