"""What `inspect` finds out about a file, and about two, as values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lbm_lora.errors import InputError, plural
from lbm_lora.report.wording import megabytes, percent, printable

Reads = Literal["all", "part", "nothing"]
Match = Literal["same", "different", "other shape", "only first", "only second"]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A checkpoint that a LoRA names by its denoiser's fingerprint, if its file does; `known_as`: who has it."""

    fingerprint: str
    known_as: str = ""


@dataclass(frozen=True, kw_only=True)
class DeltaFacts:
    """The delta of one parameter in a LoRA.

    Attributes:
        layer, kind: see `layer_of` and `kind_of_param`.
        rank, alpha: of a lora module, else None.
        norm: Frobenius norm of scaling * up @ down, or of the dense delta; nan if a value is not finite.
        rank_90, rank_99: least ranks that carry 90 and 99 % of its energy.
    """

    name: str
    block: str
    layer: str
    kind: str
    shape: tuple[int, ...]
    rank: int | None
    alpha: float | None
    nbytes: int
    norm: float
    rank_90: int | None = None
    rank_99: int | None = None


@dataclass(frozen=True, kw_only=True)
class BlockFacts:
    """The deltas or tensors of one block together: joint norm, share of the file's squared norm, sums of ranks."""

    block: str
    tensors: int
    nbytes: int
    norm: float
    share: float
    ranks: int = 0
    ranks_90: int = 0
    ranks_99: int = 0


@dataclass(frozen=True, kw_only=True)
class Truncation:
    """How small the LoRA gets when ranks are dropped where they cost least; dense deltas stay."""

    relative_error: float
    ranks: int
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Of the tensors of an LBM's denoiser, those that the file does not hold, and what else it holds."""

    tensors: int
    missing: tuple[str, ...]
    missing_kinds: Mapping[str, int]
    unexpected: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A program, and what it makes of a LoRA file as it is.

    Attributes:
        convert_to: format that `lbm-lora convert` writes for it; empty where nothing is gained.
        options: of `lbm-lora convert` for this file, besides those of paths: `--to peft --norms drop`.
    """

    name: str
    reads: Reads
    note: str
    convert_to: str = ""
    options: str = ""


@dataclass(frozen=True, kw_only=True)
class AdapterFacts:
    """A LoRA.

    Attributes:
        written_by: program that wrote it, as far as its header says.
        ranks, scalings: rank, scaling -> lora modules.
        kinds: kind of delta -> how many.
        norm: Frobenius norm of all deltas; nan if a value is not finite.
        broken: names with values that are not finite.
        coverage: None if most of its names are not those of an LBM.
    """

    file_format: str
    written_by: str
    base: Origin
    tuned: Origin
    ranks: Mapping[int, int]
    scalings: Mapping[float, int]
    kinds: Mapping[str, int]
    dtype: str
    factor_nbytes: int
    dense_nbytes: int
    norm: float
    broken: tuple[str, ...]
    truncations: tuple[Truncation, ...]
    coverage: Coverage | None
    readers: tuple[Reader, ...]
    blocks: tuple[BlockFacts, ...]
    deltas: tuple[DeltaFacts, ...]

    @property
    def modules(self) -> int:
        """Number of lora modules."""
        return sum(self.ranks.values())

    @property
    def dense(self) -> int:
        """Number of dense deltas."""
        return len(self.deltas) - self.modules

    @property
    def rank_span(self) -> str:
        """`4 to 32`, or the one rank; empty without lora modules."""
        return " to ".join(map(str, sorted({min(self.ranks), max(self.ranks)}))) if self.ranks else ""


@dataclass(frozen=True, kw_only=True)
class TensorFacts:
    """One tensor of a checkpoint's denoiser; see `DeltaFacts`."""

    name: str
    block: str
    layer: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    norm: float


@dataclass(frozen=True, kw_only=True)
class ComponentFacts:
    """Tensors of a checkpoint under one prefix; their number for each dtype."""

    name: str
    tensors: int
    nbytes: int
    dtypes: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """A model, or a part of one.

    Attributes:
        fingerprint: of the denoiser, or of all tensors if there is none; see `Origin` for `known_as`.
        role: `exact base`, `tuned` or empty, as far as the file's own records say.
        role_reason: which record says so.
        iterations: what LBM's own counter says; None if there is none.
        config: where the configuration of its networks comes from.
        coverage, broken: see `AdapterFacts`.
        tensors: those of the denoiser, or all.
    """

    components: tuple[ComponentFacts, ...]
    fingerprint: str
    known_as: str
    role: str
    role_reason: str
    iterations: int | None
    config: str
    coverage: Coverage | None
    broken: tuple[str, ...]
    blocks: tuple[BlockFacts, ...]
    tensors: tuple[TensorFacts, ...]


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """Any file of tensors.

    Attributes:
        kind: with its article: `a LoRA`, `an LBM checkpoint`.
        files: names of the files behind the path; none for a state dict.
        header_nbytes: bytes that are not tensors.
        dtypes: dtype -> tensors.
        header: strings of the header, without the digests of single tensors.
        refusal: why a file of this kind is not read as a LoRA, with the remedy.
    """

    path: Path
    kind: str
    files: tuple[str, ...]
    nbytes: int
    header_nbytes: int
    tensors: int
    dtypes: Mapping[str, int]
    first_keys: tuple[str, ...]
    header: Mapping[str, str]
    adapter: AdapterFacts | None = None
    checkpoint: CheckpointFacts | None = None
    refusal: InputError | None = None

    @property
    def summary(self) -> str:
        """`a LoRA, native, 792 lora modules of rank 4 to 8, 2.85 MB`."""
        parts = [self.kind]
        if self.adapter is not None:
            span = f" of rank {self.adapter.rank_span}" if self.adapter.ranks else ""
            parts += [self.adapter.file_format, f"{plural(self.adapter.modules, 'lora module')}{span}"]
        else:
            parts.append(plural(self.tensors, "tensor"))
        return ", ".join([*parts, megabytes(self.nbytes)])


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
        """In a few words, as in JSON."""
        differ = f"{self.what} that differ by {percent(self.relative)}"
        return f"the same {self.what}, bit for bit" if self.is_same else differ


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
        """In a few words, as in JSON."""
        return f"the LoRA {'fits' if self.fits else 'does not fit'} the checkpoint"


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
        parts = [f"{printable(one.path.name)}: {one.summary}" for one in (self.file, self.other) if one]
        if relation := self.difference or self.fit:
            parts.append(relation.summary)
        return f"<Inspection {'; '.join(parts)}>"
