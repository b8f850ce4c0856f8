"""Summarise a result: scores by set and file size, bytes at equal errors, and whether the targets are met."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks.page import Target
from benchmarks.results import Result

RANKS = (1, 2, 4, 8, 16)
"""Ranks of the plain SVD files; the other sets have files of the same sizes, in the same order."""
METHODS = {
    "calibrated": ("full", "small"),
    "refined": ("refined", "refined_small"),
    "in 8 bits": ("int8", "int8_small"),
}
"""Map from method to the sets that contain its files."""
PREDICTED = {"small": "fp16", "full": "fp16", "int8_small": "int8", "int8": "int8"}
"""Map from sets with predicted errors to the precision of their files."""
DENOISER, IMAGE = "denoiser_psnr", "image_psnr"

Scores = Mapping[str, np.ndarray]
"""Scores of a set's files by size. (files,): `nbytes` of the file, `matrix_bytes` of its matrix values, `error_db` of
the output averaged over the images, `predicted_db`, and `foreseen_db` from the statistics alone, or NaN.
(files, images): `denoiser_psnr` and `image_psnr` in dB."""
Sets = Mapping[str, Scores]
Value = Callable[[Sets], float | None]

_FROM_2, _FROM_4 = slice(1, None), slice(2, None)  # the sizes of these ranks and above


def sets_of(result: Result) -> dict[str, Scores]:
    """Return every measured set."""
    found: dict[str, Scores] = {}
    for name, made in result["sets"].items():
        files = list(made["files"].values())
        predicted = [file["predicted"] or {"error": math.nan, "foreseen": math.nan} for file in files]
        found[name] = {
            **{key: np.array([file[key] for file in files]) for key in ("nbytes", "matrix_bytes", DENOISER, IMAGE)},
            "error_db": np.array([file["error_db"] for file in files]).mean(axis=1),
            "predicted_db": 20 * np.log10([one["error"] for one in predicted]),
            "foreseen_db": 20 * np.log10([one["foreseen"] for one in predicted]),
        }
    return found


def gain(found: Scores, reference: Scores, key: str = DENOISER) -> np.ndarray:
    """Return the gain in dB of the mean over the images, for each file."""
    return (found[key] - reference[key]).mean(axis=1)


def below(found: Scores, reference: Scores) -> np.ndarray:
    """Return the number of images of each file that are worse, by the denoiser's output or decoded."""
    return ((found[DENOISER] < reference[DENOISER]) | (found[IMAGE] < reference[IMAGE])).sum(axis=1)


def bytes_at(points: Sequence[tuple[float, float]], error: float) -> float:
    """Return the bytes at which a curve reaches an error, interpolated in dB over the logarithm of bytes.

    The curve is a list of (bytes, dB) points, sorted by bytes. If the first is good enough, its bytes are returned,
    although fewer may suffice. If none is, the result is NaN.
    """
    before: tuple[float, float] | None = None
    for nbytes, reached in points:
        if reached <= error:
            if before is None:
                return nbytes
            share = (before[1] - error) / (before[1] - reached)
            return before[0] * (nbytes / before[0]) ** share
        before = nbytes, reached
    return math.nan


def savings(sets: Sets, method: str, key: str, of: str = "plain") -> np.ndarray:
    """Return how many times the bytes of a method each plain SVD file needs for the same error."""
    made = [sets[name] for name in METHODS[method] if name in sets]
    points = sorted(point for one in made for point in zip(one[key], one["error_db"], strict=True))
    return sets[of][key] / np.array([bytes_at(points, error) for error in sets[of]["error_db"]])


def _least_gain(name: str, reference: str, key: str = DENOISER) -> Value:
    return lambda sets: gain(sets[name], sets[reference], key)[_FROM_4].min()


def _below_plain(sets: Sets) -> float:
    return below(sets["full"], sets["plain"])[_FROM_2].sum()


def _least_saving(method: str, key: str) -> Value:
    def value(sets: Sets) -> float | None:
        complete = {name: sets[name] for name in (*METHODS[method], "plain")}
        least = savings(complete, method, key)[_FROM_2].min()
        return None if math.isnan(least) else least

    return value


def _largest_surprise(sets: Sets) -> float | None:
    made = [sets[name] for name in PREDICTED if name in sets]
    return max((np.abs(one["error_db"] - one["predicted_db"]).max() for one in made), default=None)


def _target(what: str, limit: float, unit: str, value: Value, at_least: bool = True) -> Target:
    return Target(what, limit, unit, value, ".3g", at_least=at_least, by_difference=True)


_SURPRISE = "all sizes: largest difference"
_GAIN = "at the sizes of rank 4 and above: least gain"
_LIMITS = {"calibrated": ("calibrated", 8), "refined": ("refined", 12), "in 8 bits": ("8-bit", 12)}
TARGETS: tuple[Target, ...] = (
    _target(f"denoiser's one-step output, calibrated over plain {_GAIN}", 15, "dB", _least_gain("full", "plain")),
    _target("decoded images, the same: least gain", 8, "dB", _least_gain("full", "plain", IMAGE)),
    _target("held-out images below plain's at the sizes of ranks 2, 4, 8, 16", 0, "", _below_plain, at_least=False),
    _target(f"refined over calibrated, denoiser's output, {_GAIN}", 5, "dB", _least_gain("refined", "full")),
    *(
        _target(
            f"plain's {words} over those of {name} files of the same error, ranks 2 and above: least", limit, "x", value
        )
        for method, (name, limit) in _LIMITS.items()
        for words, value in (
            ("bytes of matrices", _least_saving(method, "matrix_bytes")),
            ("file bytes", _least_saving(method, "nbytes")),
        )
    ),
    _target(f"predicted against measured error of the output, {_SURPRISE}", 3, "dB", _largest_surprise, at_least=False),
)
