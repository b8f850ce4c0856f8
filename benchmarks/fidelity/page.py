"""Write `docs/fidelity.md` and its chart from the newest result."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.fidelity import numbers
from benchmarks.fidelity.numbers import DENOISER, IMAGE, METHODS, RANKS, Sets, gain, savings
from benchmarks.page import render
from benchmarks.results import Result, newest
from lbm_lora.atomic import write_text

Rows = list[tuple[str, ...]]
Table = tuple[Sequence[str], Rows]
"""Header and rows."""
Labels = Mapping[str, str]
"""Map from set to its column header."""

_COLORS = ("#6b7280", "#b45309", "#1d4ed8", "#15803d", "#9d174d")
_GRID_DB = 20  # between two grid lines of the chart
_GRID_MB = (0.3, 0.5, 1, 2, 3, 5, 10, 20)


def write_page(results: Path, page: Path) -> Path:
    """Write the page, and its chart into the `images` folder next to it.

    Raises:
        SystemExit: no result has been measured yet.
    """
    result = newest(results, command="python -m benchmarks.fidelity")["fidelity"]
    write_text(page.parent / "images" / "fidelity.svg", chart(numbers.sets_of(result)))
    write_text(page, report(result))
    return page


def report(result: Result) -> str:
    """Return the page."""
    sets = numbers.sets_of(result)
    counts = sorted(int(name.removeprefix("images_")) for name in sets if name.startswith("images_"))
    return render(
        "fidelity.md.j2",
        result=result,
        sets=sets,
        targets=[target.row(sets) for target in numbers.TARGETS],
        base={key: _cell(np.array(result["base"][key])) for key in (DENOISER, IMAGE)},
        counts={f"images_{count}": str(count) for count in counts},
        columns=partial(columns, sets),
        against_plain=partial(_against_plain, sets),
        steps=partial(_steps, sets),
        same_error=_same_error(sets),
        plain_convs=_plain_convs(sets) if "plain_convs" in sets else [],
        predictions=_predictions(sets),
    )


def columns(sets: Sets, labels: Labels, key: str = DENOISER) -> Table:
    """Return one score of several sets at all sizes: the mean over the images, and the worst image."""
    made = {label: sets[name][key] for name, label in labels.items() if name in sets}
    rows = [
        (f"{nbytes / 1e6:.2f} MB (rank {rank})", *(_cell(scores[i]) for scores in made.values()))
        for i, (rank, nbytes) in enumerate(zip(RANKS, sets["plain"]["nbytes"], strict=True))
    ]
    return ("size", *made), rows


def chart(sets: Sets) -> str:
    """Return an SVG of the denoiser's PSNR against file size in MB (logarithmic axis), with one line per method."""
    series: dict[str, list[tuple[float, float]]] = {}
    for label, names in {"plain": ("plain",), "ranks chosen globally": ("plain_global",), **METHODS}.items():
        made = [sets[name] for name in names if name in sets]
        if made:
            series[label] = sorted(
                point for one in made for point in zip(one["nbytes"], one[DENOISER].mean(axis=1), strict=True)
            )
    nbytes, decibels = np.array([point for points in series.values() for point in points]).T
    low, high = math.log10(nbytes.min()), math.log10(nbytes.max())
    floor, top = _GRID_DB * math.floor(decibels.min() / _GRID_DB), _GRID_DB * math.ceil(decibels.max() / _GRID_DB)

    def placed(nbytes: float, decibel: float) -> tuple[float, float]:
        """Return the position in [0, 1], from the left and from the top."""
        return (math.log10(nbytes) - low) / (high - low), (top - decibel) / (top - floor)

    return render(
        "fidelity.svg.j2",
        series=[(name, [placed(*point) for point in points]) for name, points in series.items()],
        colors=_COLORS,
        rows=[(decibel, placed(1, decibel)[1]) for decibel in range(floor, top + 1, _GRID_DB)],
        columns=[(mb, placed(mb * 1e6, 0)[0]) for mb in _GRID_MB if low <= math.log10(mb * 1e6) <= high],
    )


def _against_plain(sets: Sets, labels: Labels, key: str) -> Table:
    """Return the columns, and the gain of calibrated files over plain ones."""
    head, rows = columns(sets, labels, key)
    if "full" not in sets:
        return head, rows
    gains, worse = gain(sets["full"], sets["plain"], key), numbers.below(sets["full"], sets["plain"])
    rows = [(*row, f"{gained:+.1f}", str(count)) for row, gained, count in zip(rows, gains, worse, strict=True)]
    return (*head, "calibrated over plain", "images below plain (either number)"), rows


def _same_error(sets: Sets) -> Table:
    """Return how many times the bytes plain SVD needs for the same error."""
    methods = [method for method, names in METHODS.items() if names[0] in sets]
    ratios = [(savings(sets, method, "matrix_bytes"), savings(sets, method, "nbytes")) for method in methods]
    plain = sets["plain"]
    rows = [
        (
            f"rank {rank}",
            f"{plain['error_db'][i]:.1f}",
            f"{plain['matrix_bytes'][i] / 1e6:.2f} / {plain['nbytes'][i] / 1e6:.2f}",
            *(f"{_times(matrices[i])} / {_times(files[i])}" for matrices, files in ratios),
        )
        for i, rank in enumerate(RANKS)
    ]
    heads = (f"{method}: times fewer bytes, matrices / file" for method in methods)
    return ("plain", "output error, dB", "matrices / file, MB", *heads), rows


def _plain_convs(sets: Sets) -> Rows:
    """Return scores and bytes of plain SVD with another split of ranks, which is better than the baseline."""
    found = sets["plain_convs"]
    ratios = [savings(sets, method, "matrix_bytes", of="plain_convs") for method in ("calibrated", "in 8 bits")]
    return [
        (
            f"{nbytes / 1e6:.2f} MB (ranks {rank} and {2 * rank})",
            *(_cell(found[key][i]) for key in (DENOISER, IMAGE)),
            f"{found['error_db'][i]:.1f}",
            *(_times(ratio[i]) for ratio in ratios),
        )
        for i, (rank, nbytes) in enumerate(zip(RANKS, found["nbytes"], strict=False))
    ]


def _steps(sets: Sets, labels: Labels) -> dict[str, float]:
    """Return label -> gain of a set over the previous one in dB, averaged over the sizes."""
    made = [name for name in labels if name in sets]
    return {labels[name]: gain(sets[name], sets[before]).mean() for before, name in pairwise(made)}


def _predictions(sets: Sets) -> Rows:
    rows: Rows = []
    for name, precision in numbers.PREDICTED.items():
        if name in sets:
            keys = ("nbytes", "foreseen_db", "predicted_db", "error_db")
            for nbytes, foreseen, predicted, error in zip(*(sets[name][key] for key in keys), strict=True):
                errors = (f"{value:.1f}" for value in (foreseen, predicted, error))
                rows.append((f"{nbytes / 1e6:.2f} MB, {precision}", *errors, f"{error - predicted:+.1f}"))
    return rows


def _cell(scores: np.ndarray) -> str:
    return f"{scores.mean():.1f} ({scores.min():.1f})"


def _times(ratio: float) -> str:
    return "-" if math.isnan(ratio) else f"{ratio:.1f}"
