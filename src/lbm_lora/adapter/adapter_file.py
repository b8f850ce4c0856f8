"""Read and write complete adapter files."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lbm_lora.adapter.finite import check_finite
from lbm_lora.adapter.foreign_file import (
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    read_foreign,
    without_unwanted,
    write_foreign,
)
from lbm_lora.adapter.formats import Saved, Source, Wishes, codec_named, codec_of
from lbm_lora.adapter.formats.names import counted
from lbm_lora.adapter.lora_folder import lora_in
from lbm_lora.adapter.metadata import ERRORS_KEY, AdapterMetadata
from lbm_lora.adapter.module import Adapter, LoraModule
from lbm_lora.adapter.native import decode, is_eight_bit, prefix_of
from lbm_lora.adapter.packed import decode_packed, is_packed
from lbm_lora.adapter.writers import AdapterWriter, write_packed
from lbm_lora.checkpoint import (
    NATIVE,
    Component,
    FileKind,
    kind_of,
    open_checkpoint,
)
from lbm_lora.configs.values import AlphaIs, FormatName
from lbm_lora.errors import AdapterError, Option
from lbm_lora.factorize import PACKED, rank_bound
from lbm_lora.files import Outputs, is_ours
from lbm_lora.naming import ModuleName
from lbm_lora.progress import warn

_ROUNDING = 2**-8  # relative rounding error of an alpha in bf16


def load_adapter(
    source: Path | str | Mapping[str, Tensor], alpha_is: AlphaIs = "auto", *, base: Component | None = None
) -> Adapter:
    """Read an adapter file of any format, or a state dict of its tensors. A file's stay there until they are used.

    In a folder it is the native LoRA, else the file that PEFT or diffusers looks for there, else its only one.

    A file recognised as one of the earlier implementation only by its alphas gives a warning.

    Args:
        base: the component that it is meant for; needed only by files with values that replace the base's.

    Raises:
        CheckpointError: the file cannot be read.
        AdapterError: its keys are not adapter keys, or do not belong together, or need the base; or a value is not
            finite.
    """
    if not isinstance(source, Mapping) and Path(source).is_dir():
        source = lora_in(Path(source))
    with open_checkpoint(source, label="the state dict") as file:
        path = file.path
        kind = kind_of(file.specs, file.metadata)
        tensors = {key: file.read(key) for key in file.specs}
        metadata = AdapterMetadata.from_header(file.metadata)
    if not tensors:
        raise AdapterError(f"{path} holds no tensors. Was it written by an interrupted run?")
    if kind is not None and kind.role != "lora":
        raise _wrong_kind(path, kind)
    read_from = None if isinstance(source, Mapping) else path
    codec = None if metadata.format and kind == NATIVE else codec_of(tensors, file.metadata)
    if codec is not None:
        adapter = read_foreign(codec, Source(tensors, file.metadata, path, base), read_from)
        return check_finite(replace(adapter, modules=_of_scaling_1(adapter.modules)) if alpha_is == "rank" else adapter)
    if is_packed(tensors):
        prefix, modules, dense, grids = decode_packed(tensors, path)
        return check_finite(Adapter(modules, dense, metadata, prefix, read_from, PACKED, grids=grids))
    prefix = prefix_of(tensors)
    modules, dense = decode(tensors, prefix, path)
    if alpha_is == "rank" or (alpha_is == "auto" and _holds_asked_ranks(path, metadata, list(modules.values()))):
        modules = _of_scaling_1(modules)
    dtype = torch.int8 if is_eight_bit(tensors) else None
    return check_finite(Adapter(modules, dense, metadata, prefix, read_from, dtype))


def _of_scaling_1(modules: Mapping[ModuleName, LoraModule]) -> dict[ModuleName, LoraModule]:
    return {name: replace(module, alpha=float(module.rank)) for name, module in modules.items()}


def _wrong_kind(path: Path, kind: FileKind) -> AdapterError:
    """Return the error for a file that cannot be read as a LoRA, with what to do."""
    if kind.role == "foreign":
        return AdapterError(
            f"{path} is {kind.name}. This format is not read. Fuse the file into its model with the program that made "
            "it, then extract a LoRA from the result."
        )
    if kind.role == "statistics":
        return AdapterError(f"{path} is {kind.name}, not a LoRA. Give it with ", Option("calibration"), ".")
    return AdapterError(f"{path} is {kind.name}, not a LoRA. `lbm-lora extract` makes a LoRA of a tuned checkpoint.")


def _holds_asked_ranks(path: Path, metadata: AdapterMetadata, modules: Sequence[LoraModule]) -> bool:
    """Return whether alpha is the requested rank, as the earlier implementation writes it.

    Then alpha exceeds the stored rank only on modules whose rank the matrix caps, and equals it on all others.
    """
    if metadata.is_earlier_implementation or metadata.format:
        return metadata.is_earlier_implementation
    others = [module for module in modules if abs(module.alpha - module.rank) > _ROUNDING * module.rank]
    if not others or not all(m.alpha > m.rank and m.rank == rank_bound(m.shape) for m in others):
        return False
    warn(
        f"{path}: alpha exceeds the rank on {len(others)} of {len(modules)} modules, all of them at the highest rank "
        "of their matrix. Alpha is therefore read as the requested rank, and the scaling is 1. To scale by alpha as "
        "stored: ",
        Option("lora_alpha_is"),
        " file.",
    )
    return True


def save_adapter(
    adapter: Adapter, path: Path | str, *, format: FormatName = "native", wishes: Wishes | None = None
) -> Saved:
    """Write a complete adapter atomically, in its `dtype`, else in the dtype of its tensors.

    An existing file is replaced, whoever made it: `Adapter.save` and the commands look first.

    Args:
        path: a file; for `peft` a folder.
        format: the format of the file.
        wishes: what becomes of deltas that the format cannot hold; by default nothing may be lost. What they drop
            is dropped in every format.

    Raises:
        AdapterError: its tensors have several dtypes, the format cannot hold a part of it, or nothing would be left.
        OutputError: the path cannot be written.
    """
    wishes, path = wishes or Wishes(), Path(path)
    adapter, dropped = without_unwanted(adapter, wishes)
    if dropped and not adapter.params:
        raise AdapterError(f"nothing is left for {path}: the LoRA holds only {counted(dropped)}, which are dropped.")
    if dropped:  # the measured errors are those of all deltas
        facts = {key: value for key, value in adapter.metadata.facts.items() if key != ERRORS_KEY}
        adapter = replace(adapter, metadata=replace(adapter.metadata, facts=facts))
    if format == "native":
        _write_native(adapter, path)
        return Saved(path, dropped)
    saved = write_foreign(adapter, path, codec_named(format), wishes)
    return replace(saved, dropped=(*dropped, *saved.dropped))


def files_of(path: Path, format: FormatName) -> tuple[Path, ...]:
    """Return the files that writing a format gives."""
    return (path / PEFT_WEIGHTS, path / PEFT_CONFIG) if format == "peft" else (path,)


def plan_files(outputs: Outputs, path: Path, format: FormatName, what: str = "") -> None:
    """Note the files of an adapter in a format.

    Args:
        what: what they are, where the user did not name the path; see `Outputs.writes`.
    """
    weights, *configs = files_of(path, format)
    outputs.writes(weights, what)
    for config in configs:
        if not is_ours(weights):  # PEFT refuses unknown keys, so the mark is in the weights alone
            outputs.writes(config, what)


def _write_native(adapter: Adapter, path: Path) -> None:
    if adapter.dtype == PACKED:
        write_packed(adapter, path)
        return
    shapes = {name: module.shape for name, module in adapter.modules.items()}
    ranks = {name: module.rank for name, module in adapter.modules.items()}
    dense = {name: tuple(delta.shape) for name, delta in adapter.dense.items()}
    dtype = adapter.dtype or _dtype_of_tensors(adapter)
    with AdapterWriter(path, adapter.prefix, dtype, shapes, ranks, dense, adapter.metadata) as writer:
        for module in adapter.modules.values():
            writer.add_module(module)
        for name, delta in adapter.dense.items():
            writer.add_dense(name, delta)


def _dtype_of_tensors(adapter: Adapter) -> torch.dtype:
    factors = [tensor for module in adapter.modules.values() for tensor in (module.up, module.down)]
    dtypes = {tensor.dtype for tensor in (*factors, *adapter.dense.values())}
    if len(dtypes) > 1:
        raise AdapterError(
            f"an adapter file has one dtype, but this adapter has {sorted(map(str, dtypes))}. Cast it first."
        )
    return dtypes.pop() if dtypes else torch.float32
