"""Summarise a result: scores by set and file size, bytes at equal errors, and whether the targets are met."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks.fidelity.kinds import ALIKE, HELD_OUT, PREDICTED, SHIFTED
from benchmarks.page import Target
from benchmarks.results import Result

RANKS = (1, 2, 4, 8, 16)
"""Ranks of the plain SVD files; the other sets have files of the same sizes, in the same order."""
METHODS = {
    "fp16": ("full", "small"),
    "int8": ("int8", "int8_small"),
    "auto": ("auto_refit", "auto_small"),
}
"""Map from method to the sets that contain its files."""
DENOISER, IMAGE, ERROR = "denoiser_psnr", "image_psnr", "error_db"

Scores = Mapping[str, np.ndarray]
"""Scores of a set's files by size. (files,): `nbytes` of the file, `matrix_bytes` of its matrix values, `error_db` of
the output averaged over the held-out images, `predicted_db` for images of the calibration's kind, `low_db` and
`high_db` of their interval, the three with `:SHIFT` for other images, `foreseen_db` from the statistics alone, or NaN.
(files, images): `denoiser_psnr` and `image_psnr` in dB, and `KIND:SCORE` for a score on images of another kind.
(files, timesteps): `timesteps_db`, the error averaged over the held-out images."""
Sets = Mapping[str, Scores]
Value = Callable[[Sets], float | None]

_FROM_2, _FROM_4, _TO_8 = slice(1, None), slice(2, None), slice(None, 4)  # the sizes of these ranks
_PREDICTED_MB = (0.2, 5.0)  # sizes at which predictions have a target


def sets_of(result: Result) -> dict[str, Scores]:
    """Return every measured set."""
    return {name: _scores(list(made["files"].values())) for name, made in result["sets"].items()}


def _scores(files: Sequence[Mapping[str, object]]) -> Scores:
    held: list[Result] = [file[HELD_OUT] for file in files]  # pyright: ignore[reportAssignmentType]
    predicted: list[Result] = [file["predicted"] or {} for file in files]  # pyright: ignore[reportAssignmentType]
    shifted = {
        f"{kind}:{key}": np.array([file[kind][key] for file in files])  # pyright: ignore[reportIndexIssue]
        for kind in (*SHIFTED, *ALIKE)
        if kind in files[0]
        for key in (DENOISER, IMAGE, ERROR)
    }
    return {
        **{key: np.array([file[key] for file in files]) for key in ("nbytes", "matrix_bytes")},
        **{key: np.array([one[key] for one in held]) for key in (DENOISER, IMAGE)},
        ERROR: np.array([one[ERROR] for one in held]).mean(axis=1),
        "timesteps_db": np.array([[np.mean(at) for at in one["timesteps"].values()] for one in held]),
        "predicted_db": _decibels(predicted, "error"),
        "foreseen_db": _decibels(predicted, "foreseen"),
        "low_db": _decibels(predicted, "low"),
        "high_db": _decibels(predicted, "high"),
        **{
            f"{name}:{shift}": values
            for shift in {*PREDICTED.values()}
            for name, values in _shifted(predicted, shift).items()
        },
        **shifted,
    }


def _shifted(predicted: Sequence[Result], shift: str) -> dict[str, np.ndarray]:
    """Return prediction and interval for images unlike the calibration's; old results have one for all, or none."""
    found = [one.get("shifted") for one in predicted]
    errors = [one if isinstance(one, dict) else {} for one in found]
    limits = [one.get("shifted_within", {}).get(shift, (None, None)) for one in predicted]
    within = [{"low": low, "high": high} for low, high in limits]
    return {
        "predicted_db": _decibels(errors, shift),
        **{f"{end}_db": _decibels(within, end) for end in ("low", "high")},
    }


def _decibels(errors: Sequence[Result], key: str) -> np.ndarray:
    found = [one.get(key) for one in errors]
    return 20 * np.log10([math.nan if error is None else error for error in found])


def gain(found: Scores, reference: Scores, key: str = DENOISER) -> np.ndarray:
    """Return the gain in dB of the mean over the images, for each file."""
    return (found[key] - reference[key]).mean(axis=1)


def below(found: Scores, reference: Scores, prefix: str = "") -> np.ndarray:
    """Return the number of images of each file that are worse, by the denoiser's output or decoded.

    Args:
        prefix: `KIND:` for images of another kind.
    """
    denoiser, image = prefix + DENOISER, prefix + IMAGE
    return ((found[denoiser] < reference[denoiser]) | (found[image] < reference[image])).sum(axis=1)


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
    points = sorted(point for one in made for point in zip(one[key], one[ERROR], strict=True))
    return sets[of][key] / np.array([bytes_at(points, error) for error in sets[of][ERROR]])


def _least_gain(name: str, reference: str, ranks: slice, key: str = DENOISER) -> Value:
    return lambda sets: gain(sets[name], sets[reference], key)[ranks].min()


def _below(reference: str) -> Value:
    return lambda sets: below(sets["auto_refit"], sets[reference]).sum()


def _shifted_below(reference: str) -> Value:
    return lambda sets: sum(below(sets["auto_refit"], sets[reference], f"{kind}:").sum() for kind in SHIFTED)


def _least_saving(key: str) -> Value:
    def value(sets: Sets) -> float | None:
        complete = {name: sets[name] for name in (*METHODS["auto"], "plain")}
        least = savings(complete, "auto", key)[_FROM_2].min()
        return None if math.isnan(least) else least

    return value


def surprises(found: Scores, kind: str = "") -> np.ndarray:
    """Return the measured less the predicted error of each file in dB, on held-out images or those of another kind.

    A kind that is unlike the calibration's is compared with the prediction for its shift.
    """
    measured = found[f"{kind}:{ERROR}"].mean(axis=1) if kind else found[ERROR]
    return measured - found[f"predicted_db{_shift(kind)}"]


def covered(found: Scores, kind: str) -> np.ndarray:
    """Return the share of images of a kind whose error lies in the interval predicted for each file, or NaN."""
    errors, shift = found[f"{kind}:{ERROR}"], _shift(kind)
    low, high = (found[f"{end}_db{shift}"][:, None] for end in ("low", "high"))
    return np.where(np.isnan(low), math.nan, (errors >= low) & (errors <= high)).mean(axis=1)


def _shift(kind: str) -> str:
    """Return the end of the names of what is predicted for images of a kind."""
    return f":{PREDICTED[kind]}" if kind in PREDICTED else ""


def _largest_surprise(*kinds: str) -> Value:
    def value(sets: Sets) -> float | None:
        low, high = (1e6 * megabytes for megabytes in _PREDICTED_MB)
        found = [
            np.abs(surprises(sets[name], kind))[(sets[name]["nbytes"] >= low) & (sets[name]["nbytes"] <= high)]
            for name in METHODS["auto"]
            for kind in kinds
            if not kind or f"{kind}:{ERROR}" in sets[name]
        ]
        largest = max((one.max() for one in found if one.size and np.isfinite(one).all()), default=math.nan)
        return None if math.isnan(largest) else largest

    return value


def _target(what: str, limit: float, unit: str, value: Value, at_least: bool = True) -> Target:
    return Target(what, limit, unit, value, ".3g", at_least=at_least, by_difference=True)


TARGETS: tuple[Target, ...] = (
    _target(
        "denoiser's one-step output, auto over int8 at the sizes of ranks 1 to 8: least gain",
        5,
        "dB",
        _least_gain("auto_refit", "int8", _TO_8),
    ),
    _target("held-out images below int8's, all sizes", 0, "", _below("int8"), at_least=False),
    _target(
        "denoiser's one-step output, auto over plain at the sizes of rank 4 and above: least gain",
        15,
        "dB",
        _least_gain("auto_refit", "plain", _FROM_4),
    ),
    _target("held-out images below plain's, all sizes", 0, "", _below("plain"), at_least=False),
    _target("images unlike the calibration's below plain's, all sizes", 0, "", _shifted_below("plain"), at_least=False),
    _target(
        "plain's bytes of matrices over auto's of the same error, ranks 2 and above: least",
        30,
        "x",
        _least_saving("matrix_bytes"),
    ),
    _target("plain's file bytes over auto's, the same: least", 12, "x", _least_saving("nbytes")),
    _target(
        "predicted against measured error, auto, 0.2 to 5 MB, images of the calibration's kind: largest difference",
        2,
        "dB",
        _largest_surprise("alike"),
        at_least=False,
    ),
    _target(
        "the same on all other images, the held-out ones included",
        4,
        "dB",
        _largest_surprise("", *SHIFTED, "alike_larger", "alike_smaller"),
        at_least=False,
    ),
)
