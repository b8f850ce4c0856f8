"""What the lists of the fidelity benchmark come to: means, bytes at equal errors, and verdicts on the targets."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Result = Mapping[str, Any]
File = Mapping[str, Any]

DENOISER = "denoiser_psnr"
PICTURE = "picture_psnr"
NEVER_BELOW = (2, 4, 8, 16)
ABOVE = (4, 8, 16)
"""Ranks of plain SVD at whose sizes the targets are set."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A target and what came out.

    Attributes:
        limit: what the target is.
        measured: None where the sets for it were not made.
        at_least: the target is a lower bound, else an upper one.
    """

    what: str
    limit: float
    unit: str
    measured: float | None
    at_least: bool = True

    @property
    def words(self) -> str:
        if self.measured is None:
            return "not measured"
        short = self.limit - self.measured if self.at_least else self.measured - self.limit
        return "met" if short <= 0 else f"missed by {short:.3g} {self.unit}".rstrip()


def files_of(result: Result, name: str) -> list[File]:
    """The files of a set by size; none where it was not made."""
    found = result["sets"].get(name)
    return list(found["files"].values()) if found else []


def ranks_of(result: Result) -> list[int]:
    """The ranks of plain SVD; all other sets have files of their sizes, in this order."""
    return [int(word.removeprefix("r")) for word in result["sets"]["plain"]["files"]]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def gain(found: File, reference: File, key: str) -> float:
    """dB by which the mean is higher."""
    return mean(found[key]) - mean(reference[key])


def below(found: File, reference: File) -> int:
    """Pictures that come out worse, by the denoiser's output or decoded."""
    pairs = zip(found[DENOISER], reference[DENOISER], found[PICTURE], reference[PICTURE], strict=True)
    return sum(denoiser < other or picture < other_picture for denoiser, other, picture, other_picture in pairs)


def difference(file: File) -> float:
    """Measured error of the output less the predicted one, dB: above 0 where it came out worse."""
    return mean(file["error_db"]) - 20 * math.log10(file["predicted"]["error"])


def curve(result: Result, names: Sequence[str], key: str) -> list[tuple[float, float]]:
    """(bytes, error of the output in dB) of all files of some sets, by bytes.

    Args:
        key: `nbytes` or `matrix_bytes`.
    """
    return sorted((file[key], mean(file["error_db"])) for name in names for file in files_of(result, name))


def bytes_at(points: Sequence[tuple[float, float]], error_db: float) -> float | None:
    """The bytes at which a curve comes down to an error, on lines in dB over the logarithm of bytes.

    Args:
        points: (bytes, dB), by bytes. Where the first is good enough already, its bytes are given: fewer may do.

    Returns:
        None where no point is good enough.
    """
    before: tuple[float, float] | None = None
    for nbytes, error in points:
        if error <= error_db:
            if before is None:
                return nbytes
            share = (before[1] - error_db) / (before[1] - error)
            return before[0] * (nbytes / before[0]) ** share
        before = nbytes, error
    return None


def savings(result: Result, names: Sequence[str], key: str, of: str = "plain") -> dict[int, float | None]:
    """Rank of plain SVD -> how many times the bytes it takes for the error that some sets reach with fewer.

    Args:
        of: a set of plain SVD; it may end at a lower rank than `plain`.
    """
    points = curve(result, names, key)
    found: dict[int, float | None] = {}
    for rank, file in zip(ranks_of(result), files_of(result, of), strict=False):
        needed = bytes_at(points, mean(file["error_db"]))
        found[rank] = file[key] / needed if needed else None
    return found


def verdicts(result: Result) -> list[Verdict]:
    """One for each target, in the order that they were set."""
    full, refined = files_of(result, "full"), files_of(result, "refined")
    predicted = [file for name in ("full", "small", "int8", "int8_small") for file in files_of(result, name)]
    return [
        Verdict(
            what="denoiser's one-step output, calibrated over plain at the sizes of rank 4 and above: least gain",
            limit=15,
            unit="dB",
            measured=_least_gain(result, full, DENOISER),
        ),
        Verdict(
            what="decoded pictures, the same: least gain",
            limit=8,
            unit="dB",
            measured=_least_gain(result, full, PICTURE),
        ),
        Verdict(
            what="held-out pictures below plain's at the sizes of ranks 2, 4, 8, 16",
            limit=0,
            unit="",
            measured=_below_plain(result, full),
            at_least=False,
        ),
        Verdict(
            what="refined over calibrated, denoiser's output, at the sizes of rank 4 and above: least gain",
            limit=5,
            unit="dB",
            measured=_least(
                gain(one, other, DENOISER)
                for rank, one, other in zip(ranks_of(result), refined, full, strict=False)
                if rank in ABOVE
            ),
        ),
        *(
            Verdict(
                what=f"plain's {words} over those of {method} files of the same error, ranks 2 and above: least",
                limit=limit,
                unit="x",
                measured=_least_saving(result, names, key),
            )
            for method, names, limit in (
                ("calibrated", ("full", "small"), 8),
                ("refined", ("refined", "refined_small"), 12),
                ("8-bit", ("int8", "int8_small"), 12),
            )
            for words, key in (("bytes of matrices", "matrix_bytes"), ("file bytes", "nbytes"))
        ),
        Verdict(
            what="predicted against measured error of the output, all sizes: largest difference",
            limit=3,
            unit="dB",
            measured=max((abs(difference(file)) for file in predicted), default=None),
            at_least=False,
        ),
    ]


def _least(values: Iterable[float]) -> float | None:
    return min(values, default=None)


def _least_gain(result: Result, found: Sequence[File], key: str) -> float | None:
    pairs = zip(ranks_of(result), found, files_of(result, "plain"), strict=False)
    return _least(gain(one, plain, key) for rank, one, plain in pairs if rank in ABOVE)


def _below_plain(result: Result, found: Sequence[File]) -> int | None:
    pairs = zip(ranks_of(result), found, files_of(result, "plain"), strict=False)
    counts = [below(one, plain) for rank, one, plain in pairs if rank in NEVER_BELOW]
    return sum(counts) if counts else None


def _least_saving(result: Result, names: Sequence[str], key: str) -> float | None:
    """None where a set was not made, or an error was not reached."""
    if not all(files_of(result, name) for name in names):
        return None
    found = [saving for rank, saving in savings(result, names, key).items() if rank in NEVER_BELOW]
    return None if None in found else _least(saving for saving in found if saving is not None)
