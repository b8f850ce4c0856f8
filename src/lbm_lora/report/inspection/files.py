"""What a file of tensors is: facts that every kind has, then those of a LoRA or of a checkpoint."""

from collections.abc import Mapping
from pathlib import Path

from lbm_lora.adapter import Adapter, load_adapter
from lbm_lora.checkpoint import Checkpoint, Component, FileKind, kind_of
from lbm_lora.configs.values import AlphaIs
from lbm_lora.errors import AdapterError, CheckpointError
from lbm_lora.report.inspection.checkpoints import dtypes_of
from lbm_lora.report.inspection.values import FileFacts

_TENSOR_DIGESTS = "lbm_lora_base_tensors"
_FIRST_KEYS = 3


def read_as_lora(
    checkpoint: Checkpoint, alpha_is: AlphaIs, base: Component | None = None
) -> Adapter | AdapterError | None:
    """Return the LoRA in a file, or why it cannot be read; None for a file that is not meant as one.

    Args:
        base: the component that it is meant for; see `load_adapter`.
    """
    kind = kind_of(checkpoint.specs, checkpoint.metadata)
    if kind is not None and kind.role not in ("lora", "foreign"):
        return None
    try:
        return load_adapter(checkpoint.state_dict() if checkpoint.in_memory else checkpoint.path, alpha_is, base=base)
    except AdapterError as error:
        return None if kind is None else error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        raise CheckpointError(f"{path} was removed or moved while it was in use. Run the command again.") from None


def file_facts(checkpoint: Checkpoint, found: Adapter | AdapterError | None) -> FileFacts:
    """Return the facts that any file has."""
    files = () if checkpoint.in_memory else checkpoint.files
    tensor_nbytes = sum(spec.nbytes for spec in checkpoint.specs.values())
    nbytes = sum(_size(path) for path in files) if files else tensor_nbytes
    return FileFacts(
        path=checkpoint.path,
        kind=_kind(checkpoint, found),
        files=tuple(path.name for path in files),
        nbytes=nbytes,
        header_nbytes=nbytes - tensor_nbytes,
        tensors=len(checkpoint.specs),
        dtypes=dtypes_of(checkpoint.specs.values()),
        first_keys=tuple(list(checkpoint.specs)[:_FIRST_KEYS]),
        header=_header(checkpoint.metadata),
        refusal=found if isinstance(found, AdapterError) else None,
    )


def _kind(checkpoint: Checkpoint, found: Adapter | AdapterError | None) -> str:
    if isinstance(found, Adapter):
        return "a LoRA"
    kind: FileKind | None = kind_of(checkpoint.specs, checkpoint.metadata)
    if kind is not None:
        return kind.name
    return "a file of tensors of no known kind" if checkpoint.specs else "a file without tensors"


def _header(metadata: Mapping[str, str]) -> dict[str, str]:
    """The strings of a header in the order of their names, without the digests of thousands of tensors."""
    return {key: metadata[key] for key in sorted(metadata) if key != _TENSOR_DIGESTS}
