"""How two files relate, and all that `inspect` finds out, as values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lbm_lora.report.inspection.values import FileFacts
from lbm_lora.report.wording import percent, printable

Match = Literal["same", "different", "other shape", "only first", "only second"]


@dataclass(frozen=True, kw_only=True)
class TensorDifference:
    """One parameter in two files.

    Attributes:
        match: `same` bits, `different`, of `other shape`, or `only` in one of them.
        relative: ||first - second||_F / ||first||_F; inf if only the first is 0; nan if it cannot be measured.
        cosine: of both as vectors; nan if it cannot be measured.
        norm: ||first - second||_F.
        largest: largest |first - second| of a checkpoint's tensor; nan for a LoRA, whose deltas stay factors.
    """

    name: str
    block: str
    layer: str
    match: Match
    relative: float
    cosine: float
    norm: float
    largest: float


@dataclass(frozen=True, kw_only=True)
class BlockDifference:
    """The parameters of one block in two files; see `TensorDifference`."""

    block: str
    tensors: int
    same: int
    relative: float
    cosine: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two LoRAs, or two checkpoints, tensor by tensor.

    Attributes:
        what: `deltas` or `tensors`.
        counts: match -> parameters.
        relative, cosine: over all parameters, one that is missing counting as 0.
        rows: every parameter, in the first file's order.
    """

    what: Literal["deltas", "tensors"]
    counts: Mapping[str, int]
    relative: float
    cosine: float
    blocks: tuple[BlockDifference, ...]
    rows: tuple[TensorDifference, ...]

    @property
    def is_same(self) -> bool:
        """Whether every parameter has the same bits in both."""
        return set(self.counts) <= {"same"}

    @property
    def summary(self) -> str:
        """In a few words."""
        if self.is_same:
            return f"the same {self.what}, bit for bit"
        return f"{self.what} that differ by {percent(self.relative)}"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A LoRA and a checkpoint.

    Attributes:
        matched: parameters of the LoRA with the same name and shape in the checkpoint.
        unmatched: names that the checkpoint does not have.
        mismatched: names with another shape there.
        base: `base`, `tuned`, `other` (another base), or `unknown` if the LoRA records no fingerprint.
        differing: tensors of the checkpoint that differ from the recorded base, if it is another one.
    """

    matched: int
    unmatched: tuple[str, ...]
    mismatched: tuple[str, ...]
    base: Literal["base", "tuned", "other", "unknown"]
    differing: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the LoRA can be applied to the checkpoint without an option that overrides a check."""
        return bool(self.matched) and not self.unmatched and not self.mismatched and self.base in ("base", "unknown")

    @property
    def summary(self) -> str:
        """In a few words."""
        return "the LoRA fits the checkpoint" if self.fits else "the LoRA does not fit the checkpoint"


@dataclass(frozen=True, kw_only=True, repr=False)
class Inspection:
    """What one file is, or two and how they differ.

    Attributes:
        difference: of two LoRAs or two checkpoints.
        fit: of a LoRA and a checkpoint.
        written: files of the report.
    """

    file: FileFacts
    other: FileFacts | None = None
    difference: Difference | None = None
    fit: Fit | None = None
    written: tuple[Path, ...] = field(default=())

    def __repr__(self) -> str:
        """`<Inspection r8.safetensors: a LoRA, native, 792 lora modules of rank 4 to 8, 2.85 MB>`."""
        relation = self.difference or self.fit
        also = f"; {printable(self.other.path.name)}: {self.other.summary}" if self.other else ""
        end = f"; {relation.summary}" if relation else ""
        return f"<Inspection {printable(self.file.path.name)}: {self.file.summary}{also}{end}>"
