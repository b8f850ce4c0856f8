"""What `inspect` finds out about a LoRA, as values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Reads = Literal["all", "part", "nothing"]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A checkpoint that a LoRA names by its fingerprint.

    Attributes:
        fingerprint: digest of its denoiser; empty if the file does not record it.
        known_as: the checkpoint that has it, of those at hand and those that lbm-lora knows; empty if none has.
    """

    fingerprint: str
    known_as: str = ""


@dataclass(frozen=True, kw_only=True)
class DeltaFacts:
    """The delta of one parameter in a LoRA.

    Attributes:
        layer: what its layer does: `attn1.to_q`, `conv1`, `norm`.
        kind: `linear`, `conv 3x3`, `bias`, `norm`, `matrix`, `other`; the first two have a rank.
        rank, alpha: of a lora module, else None.
        nbytes: bytes of its values in a file.
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
    """The tensors of one block of the network together.

    Attributes:
        tensors: deltas in a LoRA, tensors in a checkpoint.
        norm: joint Frobenius norm.
        share: of the squared norm of the file.
        ranks, ranks_90, ranks_99: sums over its lora modules; 0 in a checkpoint.
    """

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
    """How small the LoRA gets when ranks are dropped where they cost least; dense deltas stay.

    Attributes:
        relative_error: largest ||delta - rest||_F / ||delta||_F over the file.
    """

    relative_error: float
    ranks: int
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """An LBM's denoiser tensors that the file does not hold, and what else it holds.

    Attributes:
        tensors: tensors of an LBM's denoiser.
        missing: their names.
        missing_kinds: kind -> missing tensors.
        unexpected: names that an LBM's denoiser does not have.
    """

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
        file_format: see `Adapter.file_format`.
        written_by: program that wrote it, as far as its header says.
        base, tuned: the checkpoints that it was made from.
        ranks, scalings: rank, scaling -> lora modules.
        kinds: kind of delta -> how many.
        dtype: of the stored factors and deltas.
        factor_nbytes, dense_nbytes: bytes of factors and of dense deltas.
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
        if not self.ranks:
            return ""
        least, most = min(self.ranks), max(self.ranks)
        return f"{least}" if least == most else f"{least} to {most}"
