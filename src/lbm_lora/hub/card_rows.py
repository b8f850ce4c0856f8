"""Rows of a model card's tables: what a LoRA holds, and what was measured of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lbm_lora.adapter import Adapter
from lbm_lora.adapter.formats.names import counted
from lbm_lora.adapter.metadata import REFINEMENT_KEY, SETTINGS_KEY, parsed
from lbm_lora.errors import plural
from lbm_lora.plain_text import parse_json, read_text
from lbm_lora.progress import warn
from lbm_lora.regular_file import file_digest

Row = tuple[str, str]
"""What, and its value."""

_ERRORS = {
    "relative_error": "relative error of the weights",
    "noise_floor": "noise floor of the weights (rounding of the checkpoints)",
    "error_before": "error of the denoiser's output before refinement",
    "error_after": "error of the denoiser's output",
    "worst_error_after": "worst error of the denoiser's output",
}
"""Errors in the header of a LoRA -> what they are on a card; others are shown under their own names."""


def content_rows(adapter: Adapter, nbytes: int) -> list[Row]:
    """Return what a LoRA holds, and how it was made.

    Args:
        nbytes: bytes of its native file.
    """
    ranks = [module.rank for module in adapter.modules.values()]
    rows = [
        ("layers", f"{len(ranks)}, ranks {min(ranks)} to {max(ranks)}" if ranks else "none"),
        ("biases and norms", counted(adapter.dense) or "none"),
        ("file", f"{nbytes / 1e6:.1f} MB, {adapter.precision}"),
    ]
    method = parsed(adapter.metadata.facts, SETTINGS_KEY).get("method")
    made = "refined" if REFINEMENT_KEY in adapter.metadata.facts else f"extracted ({method})" if method else ""
    rows += [("made", f"{made} from a fine-tuned checkpoint")] if made else []
    if adapter.metadata.base_fingerprint:
        rows.append(("fingerprint of the base", adapter.metadata.base_fingerprint))
    return rows


def measured_errors(adapter: Adapter) -> dict[str, float]:
    """Return the errors that the header of a LoRA records, by name."""
    facts = adapter.metadata.facts
    found = {**parsed(facts, "lbm_lora_errors"), **parsed(facts, REFINEMENT_KEY)}
    known = {name: found[name] for name in (*_ERRORS, *found) if name in found and ("error" in name or name in _ERRORS)}
    return {name: float(value) for name, value in known.items() if isinstance(value, int | float)}


def error_rows(errors: Mapping[str, float]) -> list[Row]:
    """Return errors as rows, in per cent."""
    return [(_ERRORS.get(name, name.replace("_", " ")), f"{100 * value:.3g} %") for name, value in errors.items()]


def report_rows(folder: Path, lora: Path | None) -> list[Row]:
    """Return the PSNR rows for base + LoRA from the report of `lbm-lora validate`; none without a report.

    Args:
        lora: the file of the LoRA: a report of another one is left out, with a warning. None: it has none.
    """
    path = folder / "report.json"
    if not path.is_file():
        return []
    try:
        report: Any = parse_json(read_text(path))
        outputs = report["outputs"]
        digest = report["provenance"].get("digests", {}).get("LoRA")
        if outputs and (lora is None or digest != file_digest(lora)):
            warn(f"{path} is not of this LoRA as it is now, so the card does not show its PSNR. Run validate again.")
            return []
        entries = [entry for entry in (outputs or {}).get("summary", ()) if entry["variant"] == "base + LoRA"]
        return [
            (
                f"images at {plural(entry['steps'], 'step')}, to the tuned model's",
                f"PSNR {float(entry['mean_psnr']):.1f} dB on average, {float(entry['worst_psnr']):.1f} dB at worst",
            )
            for entry in entries
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []  # another program's report.json
