"""The model card of a LoRA: the README.md of its repository, with the metadata that the hub reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from lbm_lora.adapter import Adapter
from lbm_lora.adapter.formats.names import counted
from lbm_lora.adapter.metadata import REFINEMENT_KEY, SETTINGS_KEY, parsed
from lbm_lora.errors import ConfigError, plural
from lbm_lora.files import MARK, file_digest
from lbm_lora.progress import warn
from lbm_lora.text import parse_json, read_text

LIBRARY = "lbm-lora"
"""The card's `library_name`: with `diffusers` the hub would show a snippet with a prompt, which fails for an LBM."""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """Contents of a card.

    Attributes:
        base_model: id of the model on the hub that the LoRA is for.
        is_backbone: whether that is the backbone that the exact base is made from, not an LBM.
        lora, twin: names of the native file and of that for diffusers, if that format can hold the LoRA.
        contents, measured: rows: what, and its value.
        lost, remarks: what the file for diffusers leaves out, and what its users should know, as sentences.
        images: paths in the repository.
        relative_error: of the weights, for the hub's own table, if it was measured.
    """

    repo: str
    base_model: str
    is_backbone: bool
    license: str
    lora: str
    twin: str | None
    contents: Sequence[tuple[str, str]]
    measured: Sequence[tuple[str, str]]
    lost: str = ""
    remarks: Sequence[str] = ()
    images: Sequence[str] = ()
    relative_error: float | None = None

    @property
    def title(self) -> str:
        """Name of the repository without its owner."""
        return self.repo.partition("/")[2]


def card_text(facts: CardFacts) -> str:
    """Return the text of a card: metadata in YAML, then Markdown."""
    # only this needs the template language
    from huggingface_hub import ModelCardData
    from jinja2 import Environment, PackageLoader, StrictUndefined

    data = ModelCardData(**_metadata(facts))
    environment = Environment(
        loader=PackageLoader("lbm_lora.hub", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # Markdown; names from files are in `escaped`
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    body = environment.get_template("card.md").render(facts=facts)
    text = f"---\n{data.to_yaml()}\n---\n\n{body}"
    return f"{text}<!-- {MARK}, sha256 {sha256(text.encode()).hexdigest()} -->\n"


def _metadata(facts: CardFacts) -> dict[str, Any]:
    from huggingface_hub import EvalResult

    metadata: dict[str, Any] = {
        "base_model": facts.base_model,
        "base_model_relation": "adapter",
        "library_name": LIBRARY,
        "license": facts.license,
        "pipeline_tag": "image-to-image",
        "tags": ["lora", "lbm", "latent-bridge-matching", "image-to-image"],
    }
    if facts.images:  # a text is required; there is no prompt
        metadata["widget"] = [{"text": PurePosixPath(path).stem, "output": {"url": path}} for path in facts.images]
    if facts.relative_error is not None:
        metadata["model_name"] = facts.title
        metadata["eval_results"] = [
            EvalResult(
                task_type="image-to-image",
                dataset_type="weights",
                dataset_name="Change of the fine-tune (weights of the denoiser)",
                metric_type="relative_error",
                metric_name="Relative error (Frobenius)",
                metric_value=facts.relative_error,
            )
        ]
    return metadata


def check_card(text: str) -> None:
    """Check a card as huggingface_hub reads it: every field that was written is there, of its type."""
    from huggingface_hub import ModelCard

    try:
        data: Mapping[str, Any] = ModelCard(text, ignore_metadata_errors=False).data.to_dict()
    except (ValueError, TypeError) as error:
        raise ConfigError(f"the model card is not valid: {error}") from None
    needed = ("base_model", "base_model_relation", "library_name", "license", "pipeline_tag", "tags")
    missing = [name for name in needed if not data.get(name)]
    if missing:
        raise ConfigError(f"the model card lacks {', '.join(missing)}.")


def _cell(text: str) -> str:
    """Return text for a cell of a table, in which a name from a file cannot be markup."""
    for sign in "\\`*_|<>[]":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


_ERRORS = {
    "relative_error": "relative error of the weights",
    "noise_floor": "noise floor of the weights (rounding of the checkpoints)",
    "error_before": "error of the denoiser's output before refinement",
    "error_after": "error of the denoiser's output",
    "worst_error_after": "worst error of the denoiser's output",
}
"""Errors in the header of a LoRA -> what they are on a card; others are shown under their own names."""


def content_rows(adapter: Adapter, nbytes: int) -> list[tuple[str, str]]:
    """Return what a LoRA holds, and how it was made, as rows: what, and its value."""
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


def error_rows(errors: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return errors as rows, in per cent."""
    return [(_ERRORS.get(name, name.replace("_", " ")), f"{100 * value:.3g} %") for name, value in errors.items()]


def report_rows(folder: Path, lora: Path | None) -> list[tuple[str, str]]:
    """Return the PSNR rows for base + LoRA from the report of `lbm-lora validate`, if it is of this file."""
    path = folder / "report.json"
    if not path.is_file():
        return []
    try:
        report: Any = parse_json(read_text(path))
        outputs = report["outputs"]
        digest = report["provenance"].get("digests", {}).get("LoRA")
        if outputs and (lora is None or digest != file_digest(lora)):
            warn(
                f"{path} reports on another version of this LoRA, so the card does not show its PSNR. "
                "Run validate again."
            )
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
