"""Write `docs/fidelity.md` and its chart from the newest result."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.fidelity import numbers
from benchmarks.fidelity.kinds import HELD_OUT, SHIFTED
from benchmarks.fidelity.numbers import DENOISER, ERROR, IMAGE, METHODS, RANKS, Scores, Sets, gain, savings
from benchmarks.page import render
from benchmarks.results import Result, newest
from lbm_lora.files import write_text

Rows = list[tuple[str, ...]]
Table = tuple[Sequence[str], Rows]
"""Header and rows."""
Labels = Mapping[str, str]
"""Map from set to its column header."""

SHIFTED_LABELS: Labels = {
    "plain": "plain",
    "plain_convs": "plain, twice the rank for convs",
    "full": "fp16",
    "int8": "int8",
    "auto_refit": "auto",
}
TIMESTEP_LABELS: Labels = {"plain": "plain", "int8": "int8", "auto_refit": "auto"}

_ALIKE_SHIFTED = ("alike_larger", "alike_smaller")

_COLORS = ("#6b7280", "#b45309", "#1d4ed8", "#15803d", "#9d174d")
_GRID_DB = 20  # between two grid lines of the chart
_GRID_MB = (0.3, 0.5, 1, 2, 3, 5, 10, 20)


def write_page(results: Path, page: Path) -> Path:
    """Write the page, and its chart into the `images` folder next to it.

    Raises:
        SystemExit: no result has been measured yet.
    """
    found = newest(results, command="python -m benchmarks.fidelity")
    write_text(page.parent / "images" / "fidelity.svg", chart(numbers.sets_of(found["fidelity"])))
    write_text(page, report(found["fidelity"], found.get("networks")))
    return page


def report(result: Result, others: Result | None = None) -> str:
    """Return the page.

    Args:
        others: result of `other_networks`.
    """
    sets = numbers.sets_of(result)
    counts = sorted(int(name.removeprefix("images_")) for name in sets if name.startswith("images_"))
    return render(
        "fidelity.md.j2",
        result=result,
        sets=sets,
        targets=[target.row(sets) for target in numbers.TARGETS],
        base={key: _cell(np.array(result["base"][HELD_OUT][key])) for key in (DENOISER, IMAGE)},
        counts={f"images_{count}": str(count) for count in counts},
        columns=partial(columns, sets),
        against_plain=partial(_against_plain, sets),
        steps=partial(_steps, sets),
        same_error=_same_error(sets),
        plain_convs=_plain_convs(sets) if "plain_convs" in sets else [],
        shifted=_shifted(sets, result["base"]),
        timesteps=_timesteps(sets, list(result["base"][HELD_OUT]["timesteps"])),
        predictions=_predictions(sets),
        others=others,
        other_tables={name: _other(one) for name, one in others["networks"].items()} if others else {},
        gains=_gains(sets, others) if others else {},
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
    """Return the columns, the gain of the automatic files over 8-bit ones, and how many of their images are worse."""
    head, rows = columns(sets, labels, key)
    if not {"auto_refit", "int8"} <= sets.keys():
        return head, rows
    gains = gain(sets["auto_refit"], sets["int8"], key)
    worse = [numbers.below(sets["auto_refit"], sets[name]) for name in ("int8", "plain")]
    cells = [f"{gained:+.1f}" for gained in gains], [f"{a} / {b}" for a, b in zip(*worse, strict=True)]
    rows = [(*row, *more) for row, *more in zip(rows, *cells, strict=True)]
    return (*head, "auto over int8", "images below int8 / plain (either number)"), rows


def _shifted(sets: Sets, base: Result) -> Table:
    """Return the output errors on images unlike the calibration's, by kind and size."""
    made = {label: sets[name] for name, label in SHIFTED_LABELS.items() if name in sets}
    rows: Rows = []
    for kind, words in SHIFTED.items():
        key = f"{kind}:{ERROR}"
        for i, rank in enumerate(RANKS):
            cells = [_error_cell(one[key][i]) if i < len(one[key]) else "-" for one in made.values()]
            rows.append((words, _error_cell(np.array(base[kind][ERROR])), f"rank {rank}", *cells))
    return ("images", "base", "size of plain's", *made), rows


def _timesteps(sets: Sets, timesteps: Sequence[str]) -> Table:
    """Return the output error at each timestep of some methods."""
    made = {label: sets[name]["timesteps_db"] for name, label in TIMESTEP_LABELS.items() if name in sets}
    rows = [
        (f"rank {rank}", *(" / ".join(f"{one[i, j]:.1f}" for one in made.values()) for j in range(len(timesteps))))
        for i, rank in enumerate(RANKS)
    ]
    return ("size of plain's", *(f"timestep {at}: {' / '.join(made)}" for at in timesteps)), rows


def _other(network: Result) -> Table:
    """Return the output errors of another network, by kind of input and size."""
    sets = network["sets"]
    rows = [
        (
            words,
            _error_cell(np.array(network["base"][kind])),
            f"{plain['nbytes'] / 1e6:.2f} MB (rank {rank})",
            *(_error_cell(np.array(files[rank]["errors"][kind])) for files in sets.values()),
        )
        for kind, words in network["kinds"].items()
        for rank, plain in sets["plain"].items()
    ]
    return ("inputs", "base", "size", *sets), rows


def _gains(sets: Sets, others: Result) -> dict[str, float]:
    """Return network -> gain in dB of its best files over plain at the size of plain's rank 4, on inputs in domain."""
    best = next(name for name in ("auto_refit", "auto", "int8", "full", "plain") if name in sets)
    at = RANKS.index(4)
    gains = {"the mini model": float(sets["plain"][ERROR][at] - sets[best][ERROR][at])}
    for network in others["networks"].values():
        plain, *_, last = network["sets"].values()
        kind = next(iter(network["kinds"]))
        plain_db, best_db = (np.mean(files["4"]["errors"][kind]) for files in (plain, last))
        gains[network["title"]] = float(plain_db - best_db)
    return gains


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
    ratios = [savings(sets, method, "matrix_bytes", of="plain_convs") for method in METHODS]
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


def _predictions(sets: Sets) -> Table:
    """Return predicted and measured errors, and by how much they differ on images of each kind."""
    rows: Rows = []
    for method, names in METHODS.items():
        for found in (sets[name] for name in names if name in sets):
            for i, nbytes in enumerate(found["nbytes"]):
                if math.isnan(found["predicted_db:content"][i]):
                    continue
                foreseen, *predicted = (
                    f"{found[f'{key}_db'][i]:.1f}" for key in ("foreseen", "predicted", "low", "high")
                )
                error, low, high = predicted
                differences = [_surprise(found, kind, i) for kind in ("alike", "", *_ALIKE_SHIFTED, *SHIFTED)]
                size = f"{nbytes / 1e6:.2f} MB, {method}"
                rows.append((size, foreseen, f"{error} ({low} to {high})", *differences))
    heads = ("size", "by the statistics alone", "predicted (80 % of images)", "calibration's kind")
    return (*heads, "held-out", "larger", "smaller", "photos", "noise", "held-out, larger", "held-out, smaller"), rows


def _surprise(found: Scores, kind: str, index: int) -> str:
    if kind and f"{kind}:{ERROR}" not in found:
        return "-"
    difference = f"{numbers.surprises(found, kind)[index]:+.1f}"
    share = numbers.covered(found, kind)[index] if kind else math.nan
    return difference if math.isnan(share) else f"{difference} ({share:.0%})"


def _cell(scores: np.ndarray) -> str:
    return f"{scores.mean():.1f} ({scores.min():.1f})"


def _error_cell(errors: np.ndarray) -> str:
    return f"{errors.mean():.1f} ({errors.max():.1f})"


def _times(ratio: float) -> str:
    return "-" if math.isnan(ratio) else f"{ratio:.1f}"
