"""A report as JSON with a fixed schema, and back.

    {"schema": "lbm-lora/report/2", "verdict": "good", "weights": {...}, "outputs": {...} | null, "notes": [...],
     "provenance": {"files": {...}, "settings": {...}, "versions": {...}}}

`weights` and `outputs` have the fields of `WeightReport` and `OutputComparison`. JSON has no infinity: numbers that
are not finite are the strings `inf`, `-inf` and `nan`, which `float` reads. A field that is taken away or changes its
meaning gives the schema another number; one that is added does not.
"""

import json
from dataclasses import fields
from typing import Any, TypeVar, cast

from lbm_lora.errors import InputError
from lbm_lora.report.outputs import (
    DenoiserScore,
    DenoiserSummary,
    ImageComparison,
    LoraFile,
    OutputComparison,
    PictureScore,
    VariantScores,
    VariantSummary,
)
from lbm_lora.report.provenance import Provenance
from lbm_lora.report.schema import BlockResult, Report, TensorResult, WeightReport, to_json

SCHEMA = "lbm-lora/report/2"

Entry = dict[str, Any]
Record = TypeVar("Record")


def report_json(report: Report, *, provenance: Provenance | None = None) -> str:
    """The report as JSON text, keys in the order of the dataclasses."""
    document = {
        "schema": SCHEMA,
        "verdict": report.weights.band,
        **cast(Entry, to_json(report)),
        "provenance": to_json(provenance or Provenance()),
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def parse_report(text: str) -> Report:
    """Inverse of `report_json`, but for the provenance.

    Raises:
        InputError: the text is no report of this schema.
    """
    try:
        document = cast(Entry, json.loads(text))
        schema = document["schema"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"this is no report: a JSON object with the schema {SCHEMA} is wanted.") from None
    if schema != SCHEMA:
        raise InputError(f"this report has the schema {schema}, this program reads {SCHEMA}. Make the report again.")
    try:
        outputs = document["outputs"]
        return Report(
            weights=_weights(document["weights"]),
            outputs=None if outputs is None else _outputs(outputs),
            notes=tuple(document["notes"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"this report does not hold what {SCHEMA} says: {error!r}. Make it again.") from None


def _weights(entry: Entry) -> WeightReport:
    return _record(
        WeightReport,
        entry,
        failed=tuple(entry["failed"]),
        blocks=tuple(_record(BlockResult, block) for block in entry["blocks"]),
        rows=tuple(_record(TensorResult, row, shape=tuple(row["shape"])) for row in entry["rows"]),
    )


def _outputs(entry: Entry) -> OutputComparison:
    return _record(
        OutputComparison,
        entry,
        steps=tuple(entry["steps"]),
        timesteps=tuple(entry["timesteps"]),
        images=tuple(_image(image) for image in entry["images"]),
        summary=tuple(_record(VariantSummary, row) for row in entry["summary"]),
        denoiser=tuple(_record(DenoiserSummary, row) for row in entry["denoiser"]),
        loras=tuple(_record(LoraFile, row) for row in entry["loras"]),
    )


def _image(entry: Entry) -> ImageComparison:
    scores = (
        _record(
            VariantScores,
            variant,
            denoiser=tuple(_record(DenoiserScore, score) for score in variant["denoiser"]),
            pictures=tuple(_record(PictureScore, score) for score in variant["pictures"]),
        )
        for variant in entry["scores"]
    )
    return _record(ImageComparison, entry, scores=tuple(scores))


def _record(kind: type[Record], entry: Entry, **parsed: object) -> Record:
    """A dataclass of its JSON entry; `parsed` are the fields that JSON holds in another form."""
    values: dict[str, object] = {}
    for field in fields(kind):  # pyright: ignore[reportArgumentType]
        value = parsed[field.name] if field.name in parsed else entry[field.name]
        values[field.name] = float(cast(str, value)) if field.type is float else value
    return kind(**values)
