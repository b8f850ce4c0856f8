"""A report as one value, and as the JSON document report.json.

    {"schema": "lbm-lora/report/2", "verdict": "good", "weights": {...}, "outputs": {...} | null, "notes": [...],
     "provenance": {"files": {...}, "settings": {...}, "versions": {...}}}

A field that is taken away or changes its meaning gives the schema another number; one that is added does not, so a
reader passes over fields that it does not know.
"""

import json
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from lbm_lora.errors import plural
from lbm_lora.fidelity.outputs import OutputComparison
from lbm_lora.fidelity.weights import STRICT, Band, Float, WeightReport

SCHEMA = "lbm-lora/report/2"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Report:
    """What `validate` measured: weights always, outputs where images were given."""

    weights: WeightReport
    outputs: OutputComparison | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """`<Report: 1,676 tensors, relative error 54.8 %, 4 images>`."""
        images = f", {plural(len(self.outputs.images), 'image')}" if self.outputs else ""
        return f"<Report: {self.weights.summary}{images}>"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Provenance:
    """Facts for the reader, given by the caller. No clock and no folders: equal runs give equal reports.

    Attributes:
        files: role -> file name without its folder, with what is known of it.
        digests: role -> xxh3_128 of the file's bytes, for LoRAs.
        settings: flag -> value.
        versions: library -> version.
    """

    files: Mapping[str, str] = Field(default_factory=dict[str, str])
    digests: Mapping[str, str] = Field(default_factory=dict[str, str])
    settings: Mapping[str, bool | int | Float | str | None] = Field(default_factory=dict)
    versions: Mapping[str, str] = Field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True, config=STRICT)
class _Document:
    """The file: its fields, in their order."""

    schema: Literal["lbm-lora/report/2"]
    verdict: Band
    weights: WeightReport
    outputs: OutputComparison | None
    notes: tuple[str, ...]
    provenance: Provenance


_DOCUMENT = TypeAdapter(_Document)


def report_json(report: Report, *, provenance: Provenance | None = None) -> str:
    """The report as JSON text."""
    document = _Document(
        schema=SCHEMA,
        verdict=report.weights.band,
        weights=report.weights,
        outputs=report.outputs,
        notes=report.notes,
        provenance=provenance or Provenance(),
    )
    values = _DOCUMENT.dump_python(document, mode="json", by_alias=True)
    # Python's spelling of floats (1e-05) is part of the file; pydantic's own text has another one (1e-5)
    return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
