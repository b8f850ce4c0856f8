"""Files of other programs' formats: an adapter out of one, and into one."""

import json
from dataclasses import replace
from pathlib import Path

import torch
import xxhash

from lbm_lora.adapter.formats import Codec, Encoded, Parts, Saved, Source, Wishes
from lbm_lora.adapter.formats.names import is_norm
from lbm_lora.adapter.metadata import CONFIG_DIGEST_KEY, AdapterMetadata
from lbm_lora.adapter.module import Adapter
from lbm_lora.atomic import together, write_text
from lbm_lora.checkpoint import SafetensorsWriter, TensorSpec, open_checkpoint
from lbm_lora.errors import InputError, OutputError
from lbm_lora.factorize import PACKED
from lbm_lora.naming import ParamName, leaf_of
from lbm_lora.plain_text import TextError, read_text
from lbm_lora.progress import warn

PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""Files in the folder of a format with a config."""


def read_foreign(codec: Codec, source: Source, path: Path | None) -> Adapter:
    """Return the adapter in a foreign file; its notes are warnings.

    An adapter has one dtype: if the file has several, its tensors get the narrowest that holds them all exactly.

    Args:
        path: the file; None for a state dict.

    Raises:
        AdapterError: the codec cannot read a part of it.
    """
    parts = _of_one_dtype(codec.decode(source))
    for note in parts.notes:
        warn(f"{source.path}: {note}")
    header = {key: value for key, value in source.header.items() if key not in parts.own_header}
    metadata = AdapterMetadata.from_header(header)
    return Adapter(parts.modules, parts.dense, metadata, parts.prefix, path, file_format=codec.name)


def _of_one_dtype(parts: Parts) -> Parts:
    factors = [tensor for module in parts.modules.values() for tensor in (module.up, module.down)]
    dtypes = {tensor.dtype for tensor in (*factors, *parts.dense.values())}
    if len(dtypes) < 2:
        return parts
    common = torch.bool  # the narrowest of all
    for dtype in dtypes:
        # fp16 holds every fp8 number; torch promotes none
        common = torch.promote_types(
            common, torch.float16 if dtype.is_floating_point and dtype.itemsize == 1 else dtype
        )
    modules = {
        name: replace(module, up=module.up.to(common), down=module.down.to(common))
        for name, module in parts.modules.items()
    }
    return replace(parts, modules=modules, dense={name: delta.to(common) for name, delta in parts.dense.items()})


def write_foreign(adapter: Adapter, path: Path, codec: Codec, wishes: Wishes) -> Saved:
    """Write an adapter in a foreign format, atomically; a format with a config becomes a folder.

    Factors in 8 bits are expanded, those of a packed file to fp16. The header has the adapter's metadata, and the
    format's name for our own reader.

    Raises:
        AdapterError: the format cannot hold a part of it, and the wishes do not say what becomes of that.
        OutputError: the format is a folder, and the path is that of a file.
    """
    if adapter.dtype == torch.int8:
        dense = {name: delta.float() for name, delta in adapter.dense.items()}
        adapter = replace(adapter, dense=dense, dtype=None)
    if adapter.dtype == PACKED:
        adapter = adapter.cast(torch.float16)
    encoded = codec.encode(adapter, wishes)
    header = adapter.metadata.to_header(codec.name) | dict(encoded.header)
    if encoded.config is None:
        _write(encoded, path, header)
    else:
        if path.suffix == ".safetensors" or path.is_file():
            raise OutputError(f"{path}: the format {codec.name} is a folder of two files. Give the path of a folder.")
        config = json.dumps(encoded.config, indent=2, sort_keys=True) + "\n"
        with together():
            _write(encoded, path / PEFT_WEIGHTS, header | {CONFIG_DIGEST_KEY: _digest(config.encode())})
            write_text(path / PEFT_CONFIG, config)
    return Saved(path, encoded.dropped, encoded.notes)


def is_config_as_written(path: Path, weights: Path) -> bool:
    """Return whether a configuration is the one that was written with the weights next to it, and not edited since."""
    try:
        with open_checkpoint(weights) as file:
            return file.metadata.get(CONFIG_DIGEST_KEY) == _digest(read_text(path).encode())
    except (InputError, OSError, TextError):
        return False


def _digest(config: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(config)


def _write(encoded: Encoded, path: Path, header: dict[str, str]) -> None:
    specs = {key: TensorSpec.of(tensor) for key, tensor in encoded.tensors.items()}
    with SafetensorsWriter(path, specs, metadata=header) as file:
        for key, tensor in encoded.tensors.items():
            file.write(key, tensor)


def without_unwanted(adapter: Adapter, wishes: Wishes) -> tuple[Adapter, tuple[ParamName, ...]]:
    """Return an adapter without the biases and norms that the wishes drop, and their names."""

    def is_kept(name: ParamName) -> bool:
        return (wishes.norms if is_norm(name) else wishes.biases if leaf_of(name) == "bias" else "keep") != "drop"

    kept = {name: delta for name, delta in adapter.dense.items() if is_kept(name)}
    return replace(adapter, dense=kept), tuple(name for name in adapter.dense if name not in kept)
