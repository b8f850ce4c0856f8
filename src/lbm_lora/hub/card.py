"""The model card of a LoRA: the README.md of its repository, with the metadata that the hub reads."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from lbm_lora.errors import ConfigError
from lbm_lora.ownership import MARK
from lbm_lora.plain_text import read_text

LIBRARY = "lbm-lora"
"""The card's `library_name`. With `diffusers` the hub would show a snippet for a text-to-image pipeline of the base
model, with a prompt, which fails for an LBM."""

_SIGNATURE = re.compile(r"<!-- [^\n]* -->\n\Z")

TAGS = ("lora", "lbm", "latent-bridge-matching", "image-to-image")


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """Contents of a card.

    Attributes:
        repo: `user/repo`.
        base_model: id of the model on the hub that the LoRA is for.
        is_backbone: whether that is the backbone that the exact base is made from, not an LBM.
        license: in the hub's spelling.
        lora: name of the native file.
        twin: name of the file for diffusers; None if that format cannot hold the LoRA.
        contents: rows about the file: what, and its value.
        measured: rows of measurements: what, and its value.
        lost: what the file for diffusers leaves out, as a sentence; empty if nothing.
        remarks: what users of that file should know, one sentence each.
        images: paths of the pictures in the repository.
        relative_error: of the weights, for the hub's own table; None if it was not measured.
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
    return _signed(f"---\n{data.to_yaml()}\n---\n\n{body}")


def _signed(text: str) -> str:
    """Return a card with its last line: an invisible mark, with a digest of all that is above."""
    return f"{text}<!-- {MARK}, sha256 {sha256(text.encode()).hexdigest()} -->\n"


def is_unedited_card(path: Path) -> bool:
    """Return whether a file is a card of lbm-lora as it was written: cards are there to be edited."""
    try:
        text = read_text(path)
    except (OSError, ValueError):
        return False
    return text == _signed(_SIGNATURE.sub("", text))


def _metadata(facts: CardFacts) -> dict[str, Any]:
    from huggingface_hub import EvalResult

    metadata: dict[str, Any] = {
        "base_model": facts.base_model,
        "base_model_relation": "adapter",
        "library_name": LIBRARY,
        "license": facts.license,
        "pipeline_tag": "image-to-image",
        "tags": list(TAGS),
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
    """Check a card as huggingface_hub reads it: every field that was written is there, of its type.

    Raises:
        ConfigError: the metadata cannot be read, or lacks a field.
    """
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
