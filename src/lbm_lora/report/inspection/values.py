"""What `inspect` finds out about a file, as values."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lbm_lora.errors import InputError, plural
from lbm_lora.report.inspection.adapter_values import AdapterFacts, BlockFacts, Coverage
from lbm_lora.report.wording import megabytes


@dataclass(frozen=True, kw_only=True)
class TensorFacts:
    """One tensor of a checkpoint's denoiser.

    Attributes:
        layer: see `DeltaFacts`.
        norm: Frobenius norm; nan if a value is not finite.
    """

    name: str
    block: str
    layer: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    norm: float


@dataclass(frozen=True, kw_only=True)
class ComponentFacts:
    """Tensors of a checkpoint under one prefix.

    Attributes:
        dtypes: dtype -> tensors.
    """

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
        coverage: None if most of its names are not those of an LBM.
        broken: names with values that are not finite.
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
        nbytes: their bytes.
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
