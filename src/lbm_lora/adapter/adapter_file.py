"""Read and write complete adapter files, of any format."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from lbm_lora.adapter.formats import Codec, Saved, Source, Wishes, codec_named, codec_of
from lbm_lora.adapter.formats.names import counted, is_norm
from lbm_lora.adapter.metadata import CONFIG_DIGEST_KEY, AdapterMetadata
from lbm_lora.adapter.module import Adapter, LoraModule
from lbm_lora.adapter.native import decode, is_eight_bit, prefix_of
from lbm_lora.adapter.packed import decode_packed, encode_packed, is_packed
from lbm_lora.adapter.writers import AdapterWriter, write_tensors
from lbm_lora.blocks import is_finite
from lbm_lora.checkpoint import NATIVE, Component, FileKind, kind_of, open_checkpoint
from lbm_lora.choices import AlphaIs, FormatName
from lbm_lora.errors import AdapterError, CheckpointError, InputError, Option, OutputError, listing
from lbm_lora.factorize import PACKED, rank_bound
from lbm_lora.files import Outputs, file_digest, is_ours, is_trained, together, write_text
from lbm_lora.naming import leaf_of
from lbm_lora.progress import warn

PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""Files in the folder of a format with a config."""
NAMES = (PEFT_WEIGHTS, "pytorch_lora_weights.safetensors", "adapter_model.bin", "pytorch_lora_weights.bin")
"""Files that PEFT and diffusers look for, in this order."""
_ROUNDING = 2**-8  # relative rounding error of an alpha in bf16
_LARGEST = torch.finfo(torch.float32).max  # of an alpha, as files store it


def load_adapter(
    source: Path | str | Mapping[str, Tensor], alpha_is: AlphaIs = "auto", *, base: Component | None = None
) -> Adapter:
    """Read an adapter file of any format, or a state dict of its tensors. Tensors of a file are read on first use.

    In a folder it is the native LoRA, else the file that PEFT or diffusers looks for there, else its only one.

    A file recognised as one of the earlier implementation only by its alphas gives a warning.

    Args:
        base: the component that it is meant for; needed only by files with values that replace the base's.
    """
    if not isinstance(source, Mapping) and Path(source).is_dir():
        source = lora_in(Path(source))
    with open_checkpoint(source, label="the state dict") as file:
        path = file.path
        kind = kind_of(file.specs, file.metadata)
        tensors = file.state_dict()
        metadata = AdapterMetadata.from_header(file.metadata)
    if not tensors:
        raise AdapterError(f"{path} holds no tensors. Was it written by an interrupted run?")
    if kind is not None and kind.role != "lora":
        raise _wrong_kind(path, kind)
    read_from = None if isinstance(source, Mapping) else path
    codec = None if metadata.format and kind == NATIVE else codec_of(tensors, file.metadata)
    has_scaling_1 = alpha_is == "rank"
    if codec is not None:
        adapter = _read_foreign(codec, Source(tensors, file.metadata, path, base), read_from)
    elif is_packed(tensors):
        prefix, modules, dense, grids = decode_packed(tensors, path)  # whose scaling is 1
        adapter = Adapter(modules, dense, metadata, prefix, read_from, PACKED, grids=grids)
    else:
        prefix = prefix_of(tensors)
        modules, dense = decode(tensors, prefix, path)
        dtype = torch.int8 if is_eight_bit(tensors) else None
        adapter = Adapter(modules, dense, metadata, prefix, read_from, dtype)
        is_earlier = alpha_is == "auto" and _holds_asked_ranks(path, metadata, list(modules.values()))
        has_scaling_1 = has_scaling_1 or is_earlier
    if has_scaling_1:
        scaled = {name: replace(module, alpha=float(module.rank)) for name, module in adapter.modules.items()}
        adapter = replace(adapter, modules=scaled)
    return _checked_finite(adapter)


def lora_in(folder: Path) -> Path:
    """Return the native LoRA of a folder, since an export may hold less; else the one that PEFT or diffusers looks for.

    A folder with neither is returned itself: it may hold one file of another name.
    """
    files = sorted(folder.glob("*.safetensors"))
    native = [file for file in files if _is_native(file)] if len(files) > 1 else []
    if len(native) > 1:
        raise AdapterError(f"{folder} holds several LoRAs: {listing(file.name for file in native)}. Name one.")
    known = [folder / name for name in NAMES if (folder / name).is_file()]
    return next(iter([*native, *known]), folder)


def _is_native(file: Path) -> bool:
    with open_checkpoint(file) as opened:
        return kind_of(opened.specs, opened.metadata) == NATIVE and file.name not in NAMES


def lora_digest(path: Path) -> str:
    """Return the digest of a LoRA's files: the file and PEFT's configuration, or all files of a folder.

    The name of a single file does not count.
    """
    if not path.exists():
        raise CheckpointError(f"{path} was moved or removed while it was in use. Run the command again.")
    if path.is_dir():
        files = sorted(one for one in path.iterdir() if one.suffix in (".safetensors", ".bin", ".json"))
    else:
        files, config = [path], path.with_name(PEFT_CONFIG)
        if config.is_file():
            with open_checkpoint(path) as opened:
                files += [config] if any(".lora_A." in key for key in opened.specs) else []
    parts = (f"{'' if one == path else one.name} {file_digest(one)}" for one in files)
    return xxhash.xxh3_128_hexdigest(" ".join(parts).encode())


def is_unchanged(adapter: Adapter) -> bool:
    """Return whether an adapter's file, read again, gives the same adapter.

    A part of it, or another precision, has the path of the file too.
    """
    if adapter.path is None:
        return False
    try:
        stored = load_adapter(adapter.path)
    except InputError:
        return False
    return _facts(stored) == _facts(adapter)


def _facts(adapter: Adapter) -> tuple[object, ...]:
    return adapter.metadata, adapter.prefix, adapter.dtype, adapter.file_format, adapter.digest()


def _wrong_kind(path: Path, kind: FileKind) -> AdapterError:
    if kind.role == "foreign":
        return AdapterError(
            f"{path} is {kind.name}. This format is not read. Fuse the file into its model with the program that made "
            "it, then extract a LoRA from the result."
        )
    if kind.role == "statistics":
        return AdapterError(f"{path} is {kind.name}, not a LoRA. Give it with ", Option("calibration"), ".")
    return AdapterError(f"{path} is {kind.name}, not a LoRA. `lbm-lora extract` makes a LoRA of a tuned checkpoint.")


def _checked_finite(adapter: Adapter) -> Adapter:
    """Check once that all numbers of an adapter are finite: a delta of NaN would spread to every output."""
    bad = [
        str(name)
        for name, module in adapter.modules.items()
        if not (abs(module.alpha) <= _LARGEST and is_finite(module.up) and is_finite(module.down))
    ]
    bad += [str(name) for name, delta in adapter.dense.items() if not is_finite(delta)]
    if bad:
        raise AdapterError(
            f"{adapter.label}: {len(bad)} of {len(adapter)} deltas hold NaN or infinite values: {listing(bad)}. "
            "The file is damaged, or its training diverged."
        )
    return adapter


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


def _read_foreign(codec: Codec, source: Source, path: Path | None) -> Adapter:
    """Return the adapter in a foreign file; its notes are warnings.

    Tensors of several dtypes get the narrowest that holds them all exactly: an adapter has one.
    """
    adapter, notes = codec.decode(source)
    for note in notes:
        warn(f"{source.path}: {note}")
    modules, dense = adapter.modules, adapter.dense
    if len(adapter.tensor_dtypes) > 1:
        common = torch.bool  # the narrowest of all
        for dtype in adapter.tensor_dtypes:
            is_fp8 = dtype.is_floating_point and dtype.itemsize == 1
            common = torch.promote_types(common, torch.float16 if is_fp8 else dtype)  # torch promotes no fp8
        modules = {name: replace(one, up=one.up.to(common), down=one.down.to(common)) for name, one in modules.items()}
        dense = {name: delta.to(common) for name, delta in dense.items()}
    return replace(adapter, modules=modules, dense=dense, path=path, file_format=codec.name)


def save_adapter(
    adapter: Adapter, path: Path | str, *, format: FormatName = "native", wishes: Wishes | None = None
) -> Saved:
    """Write a complete adapter atomically, in its `dtype`, else in the dtype of its tensors. A file is replaced.

    Args:
        path: a file; for `peft` a folder.
        wishes: what becomes of deltas that the format cannot hold; by default nothing may be lost. What they drop
            is dropped in every format.
    """
    wishes, path = wishes or Wishes(), Path(path)
    fates = {name: wishes.norms if is_norm(name) else wishes.biases for name in adapter.dense}
    dropped = tuple(name for name in fates if fates[name] == "drop" and (is_norm(name) or leaf_of(name) == "bias"))
    adapter = adapter.filtered(lambda name: name not in dropped)
    if dropped and not adapter.params:
        raise AdapterError(f"nothing is left for {path}: the LoRA holds only {counted(dropped)}, which are dropped.")
    if format == "native":
        _write_native(adapter, path)
        return Saved(path, dropped)
    return Saved(path, dropped, _write_foreign(adapter, path, codec_named(format), wishes))


def files_of(path: Path, format: FormatName) -> tuple[Path, ...]:
    """Return the files that writing a format gives."""
    return (path / PEFT_WEIGHTS, path / PEFT_CONFIG) if format == "peft" else (path,)


def plan_files(outputs: Outputs, path: Path, format: FormatName, what: str = "") -> None:
    """Note the files of an adapter in a format."""
    weights, *configs = files_of(path, format)
    outputs.writes(weights, what)
    if not (is_ours(weights) or is_trained(weights)):  # PEFT refuses unknown keys: the mark is in the weights alone
        for config in configs:
            outputs.writes(config, what)


def _write_native(adapter: Adapter, path: Path) -> None:
    if adapter.dtype == PACKED:
        write_tensors(encode_packed(adapter), adapter.metadata.to_header(), path)
        return
    shapes = {name: module.shape for name, module in adapter.modules.items()}
    ranks = {name: module.rank for name, module in adapter.modules.items()}
    dense = {name: tuple(delta.shape) for name, delta in adapter.dense.items()}
    dtypes = {adapter.dtype} if adapter.dtype else adapter.tensor_dtypes or {torch.float32}
    if len(dtypes) > 1:
        raise AdapterError(
            f"an adapter file has one dtype, but this adapter has {sorted(map(str, dtypes))}. Cast it first."
        )
    (dtype,) = dtypes
    with AdapterWriter(path, adapter.prefix, dtype, shapes, ranks, dense, adapter.metadata) as writer:
        for module in adapter.modules.values():
            writer.add_module(module)
        for name, delta in adapter.dense.items():
            writer.add_dense(name, delta)


def _write_foreign(adapter: Adapter, path: Path, codec: Codec, wishes: Wishes) -> tuple[str, ...]:
    """Write an adapter in a foreign format, and return the notes; a format with a config becomes a folder.

    Factors in 8 bits are expanded, those of a packed file to fp16. The header has the adapter's metadata, and the
    format's name for our own reader.
    """
    if adapter.dtype == torch.int8:
        dense = {name: delta.float() for name, delta in adapter.dense.items()}
        adapter = replace(adapter, dense=dense, dtype=None)
    if adapter.dtype == PACKED:
        adapter = adapter.cast(torch.float16)
    encoded = codec.encode(adapter, wishes)
    header = adapter.metadata.to_header(codec.name) | dict(encoded.header)
    if encoded.config is None:
        write_tensors(encoded.tensors, header, path)
        return encoded.notes
    if path.suffix == ".safetensors" or path.is_file():
        raise OutputError(f"{path}: the format {codec.name} is a folder of two files. Give the path of a folder.")
    config = json.dumps(encoded.config, indent=2, sort_keys=True) + "\n"
    digest = {CONFIG_DIGEST_KEY: xxhash.xxh3_128_hexdigest(config.encode())}
    with together():
        write_tensors(encoded.tensors, {**header, **digest}, path / PEFT_WEIGHTS)
        write_text(path / PEFT_CONFIG, config)
    return encoded.notes
