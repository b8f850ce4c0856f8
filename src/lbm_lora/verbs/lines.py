"""Lines and paragraphs that the texts of several commands share."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lbm_lora.adapter import Status
from lbm_lora.errors import OutputError, listing
from lbm_lora.fidelity.weights import TensorResult, WeightReport
from lbm_lora.ranks import SHIFTS, Prediction, TrialImages
from lbm_lora.report.table import numbers, table
from lbm_lora.report.wording import megabytes, percent, printable

if TYPE_CHECKING:
    from lbm_lora.adapter.twins import Twin
    from lbm_lora.shards.samples import Skipped

_FEW = 8  # samples listed without --verbose
_OTHER_SIZES = "Smaller and larger files, with ranks chosen for all layers together (--max_size), would give:"


def layer_lines(report: WeightReport, verbose: bool) -> str:
    """Return the documented lines of --verbose, one per layer; empty without it."""
    return "\n".join(map(_layer_line, report.rows)) if verbose else ""


def skipped_lines(skipped: "Sequence[Skipped]", verbose: bool, *, indent: int = 2) -> list[str]:
    """Return the unusable samples with their reasons: the first of them, or all with --verbose."""
    shown = skipped if verbose else skipped[:_FEW]
    lines = [printable(f"left out: {item.key}: {item.reason}") for item in shown]
    if len(shown) < len(skipped):
        lines.append(f"and {len(skipped) - len(shown):,} more (--verbose lists them)")
    return [" " * indent + line for line in lines]


def file_lines(*paths: Path) -> str:
    """Return the written files, with their sizes.

    Raises:
        OutputError: somebody has removed one since.
    """
    return "\n".join(printable(f"wrote {path} ({megabytes(_size(path))})") for path in paths)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        raise OutputError(f"{path} was removed after it was written. Run the command again.") from None


def prediction_lines(predicted: Prediction | None, sizes: Sequence[Prediction]) -> str:
    """Return the expected errors of a LoRA, and those of smaller and larger files."""
    if predicted is None:
        return ""
    head = _predicted(predicted)
    rows = [(megabytes(other.nbytes), percent(other.error)) for other in sizes]
    return "\n".join([f"{head} {_OTHER_SIZES}" if rows else head, *table([numbers(), numbers()], rows)])


def _predicted(one: Prediction) -> str:
    if one.of != "output":
        return f"Predicted relative error of the weights: {percent(one.error)}."
    what = f"relative error of the denoiser's output: {percent(one.error)}"
    if one.low is None or one.high is None:
        return (
            f"Lower bound of the {what}, which takes layers as independent. Their errors add up: expect 1.1 to 6 times "
            "as much. Only a run measures it."
        )
    middle = f", 80 % of such inputs between {percent(one.low)} and {percent(one.high)}"
    shifted = listing(
        f"{percent(error)} ({percent(one.shifted_within[kind][0])} to {percent(one.shifted_within[kind][1])}) on "
        f"inputs {SHIFTS[kind]}"
        for kind, error in one.shifted.items()
    )
    return f"Predicted {what}{middle}{f'; {shifted}' if shifted else ''}."


def image_lines(tried: TrialImages | None, reference: str = "the tuned model's") -> str:
    """Return the PSNR of the images that a LoRA was run on."""
    if tried is None:
        return ""
    predicted = "" if tried.predicted_psnr is None else f", predicted {tried.predicted_psnr:.1f} dB"
    return (
        f"One-step images against {reference}, {tried.count:,} of them: PSNR {tried.mean_psnr:.1f} dB on "
        f"average, {tried.worst_psnr:.1f} dB at worst ({printable(tried.worst_image)}{predicted})."
    )


def twin_files(twins: "Sequence[Twin]") -> list[Path]:
    """Return the files of a LoRA in other formats."""
    return [path for twin in twins for path in twin.files]


def paragraphs(*parts: str) -> str:
    """Join the parts that are not empty, with an empty line between them."""
    return "\n\n".join(part for part in parts if part)


def _layer_line(row: TensorResult) -> str:
    if row.status not in (Status.LORA, Status.DENSE):
        return f"  - {row.name} | {row.status}: {row.reason}"
    kind = "DENSE" if row.status == Status.DENSE else "CONV" if len(row.shape) == 4 else "LINEAR"
    rank = f"rank {row.rank}" if row.rank else "no rank"
    return f"  ✓ {row.name} | {kind} | {rank} | error {100 * row.relative_error:.3f} %"
