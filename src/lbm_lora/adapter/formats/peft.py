"""Adapters of PEFT: a folder with `adapter_model.safetensors` and `adapter_config.json`.

    base_model.model.<module>.lora_A.weight, .lora_B.weight   written with alpha = rank, and one rank (see `layers`)
    base_model.model.<module>.lora_B.bias                     biases as `lora_bias`; PEFT cannot merge these
    base_model.model.<module>.base_layer.bias                 biases as `replace`: the tuned values, with `bias="all"`
    base_model.model.<norm>.weight, .bias                     norms as `replace`: the tuned values
    base_model.model.<module>.hada_w1_a, .lokr_w1, ...        LoHa and LoKr, read only: the products of LyCORIS

Norms alone are replaced by `modules_to_save`, so that disabling the adapter brings the base's back. PEFT reads them as
they are where all biases are replaced; then it can merge, but disabling does not return to the base.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from lbm_lora.adapter.formats.codec import Codec, Decoded, Encoded, Source, Wishes, check_held
from lbm_lora.adapter.formats.layers import (
    KEY,
    Before,
    DenseKinds,
    OneRank,
    as_before,
    dense_kinds,
    layer_tensors,
    notes_of,
    to_one_rank,
)
from lbm_lora.adapter.formats.lora_config import LoraConfig, config_fields, config_of
from lbm_lora.adapter.formats.peft_keys import decode_layers, is_in_memory
from lbm_lora.adapter.formats.reading import check_unrepeated, read
from lbm_lora.adapter.module import Adapter
from lbm_lora.checkpoint import TORCH_NAMES, Component
from lbm_lora.errors import AdapterError, Option, listing, plural
from lbm_lora.naming import DENOISER_PREFIX, ModuleName, ParamName, bias_of, leaf_of, module_of
from lbm_lora.text import TextError, parse_json, read_text

PREFIX = "base_model.model."
CONFIG = "adapter_config.json"
_COMPONENTS = (DENOISER_PREFIX, "unet.")


def _matches(keys: Collection[str], header: Mapping[str, str]) -> bool:
    return any(key.startswith(PREFIX) or is_in_memory(key) for key in keys)


def _decode(source: Source) -> Decoded:
    before = Before.of_header(source.header)
    named = {key.removeprefix(PREFIX): tensor for key, tensor in source.tensors.items()}
    check_unrepeated(
        [key for key, tensor in source.tensors.items() if named[key.removeprefix(PREFIX)] is not tensor], source.path
    )
    prefix = next((p for p in _COMPONENTS if all(key.startswith(p) for key in named)), "")
    tensors = {key.removeprefix(prefix): tensor for key, tensor in named.items()}
    config = _config_beside(source.path)
    notes = [] if config else [f"There is no {CONFIG} next to it: the scaling of every module is read as 1."]
    if any(".hada_" in key or ".lokr_" in key for key in tensors):
        return _products(replace(source, tensors=tensors), config, notes)
    modules, dense, more = decode_layers(tensors, config, source)
    component = source.prefix
    if before is not None:
        modules, matrices = as_before(modules, before)
        dense, component, notes = _as_stored(dense, source.base, before) | matrices, before.prefix, []
    return source.adapter(modules, dense, component, (KEY, "format")), (*more, *notes)


def _products(source: Source, config: LoraConfig | None, notes: Sequence[str]) -> Decoded:
    """Return the deltas of PEFT's LoHa or LoKr, whose scaling the config alone says."""
    adapter, more = read(source, ModuleName)

    def scaling(name: ModuleName) -> float:
        return 1.0 if config is None else config.scaling_of(name)

    modules = {name: replace(one, alpha=one.alpha * scaling(name)) for name, one in adapter.modules.items()}
    dense = {name: delta * scaling(module_of(name)) for name, delta in adapter.dense.items()}
    return source.adapter(modules, dense, source.prefix, ("format",)), (*notes, *more)


def _config_beside(path: Path) -> LoraConfig | None:
    file = (path if path.is_dir() else path.parent) / CONFIG
    if not path.exists() or not os.path.lexists(file):  # a state dict has no folder
        return None
    try:
        return config_of(cast(object, parse_json(read_text(file))), file)
    except OSError as error:
        raise AdapterError(f"{file} cannot be read: {error.strerror}.") from None
    except TextError as error:
        raise AdapterError(f"{file} {error}.") from None


def _as_stored(dense: Mapping[ParamName, Tensor], base: Component | None, before: Before) -> dict[ParamName, Tensor]:
    """Return the dense deltas, those that were added to the base's values in the dtype that they had."""
    dtype = TORCH_NAMES.get(before.replaced)
    if base is None or dtype is None:
        return dict(dense)
    stored = {name: delta.to(dtype) for name, delta in dense.items() if name in base}
    same = {name for name, delta in stored.items() if torch.equal(_added(name, delta, base), dense[name])}
    return {name: stored[name] if name in same else delta for name, delta in dense.items()}


def _added(name: ParamName, delta: Tensor, base: Component) -> Tensor:
    """Return what is left of a delta in fp32 when it was added to the base's value, and that subtracted again."""
    value = base.read(name).float()
    return (value + delta.float()) - value


def _encode(adapter: Adapter, wishes: Wishes) -> Encoded:
    kinds = dense_kinds(adapter.dense)
    layers = to_one_rank(adapter.modules, kinds.matrices, adapter.prefix)
    _check_places(adapter, kinds, layers, wishes)
    is_all = wishes.biases == "replace" and bool(kinds.biases)
    replaced = {**kinds.norms, **(kinds.biases if is_all else {})}
    biases = {} if is_all else kinds.biases
    tensors = layer_tensors(PREFIX, layers, biases)
    before = layers.before
    norms = sorted({module_of(name) for name in kinds.norms})
    if replaced:
        base = _base_of(adapter, replaced, wishes)
        others = [] if is_all else [name for name in base if module_of(name) in norms]
        for name in dict.fromkeys([*replaced, *others]):
            value, module = base.read(name), module_of(name)
            # a layer with factors holds the module that it wraps
            key = f"{module}.base_layer.{leaf_of(name)}" if module in layers.modules else name
            tensors[PREFIX + key] = value.float() + replaced[name].float() if name in replaced else value
        before = _with_dtype(before, replaced, base)
    fields = config_fields(layers.ranks) | {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "bias": "all" if is_all else "none",
        "lora_bias": bool(biases),
        "modules_to_save": None if is_all or not norms else norms,
    }
    notes = [
        *notes_of(adapter, layers),
        *(["PEFT runs a LoRA with lora_bias, but its merge_and_unload() refuses it."] if biases else []),
        *(["It replaces the base's biases: disabling it in PEFT does not bring them back."] if is_all else []),
    ]
    return Encoded(tensors, {"format": "pt", KEY: before.encoded()}, fields, notes=tuple(notes))


def _check_places(adapter: Adapter, kinds: DenseKinds, layers: OneRank, wishes: Wishes) -> None:
    with_bias = set(map(bias_of, layers.modules)) if wishes.biases == "lora_bias" else set[ParamName]()
    biases = [] if wishes.biases == "replace" else [name for name in kinds.biases if name not in with_bias]
    norms = [] if wishes.norms == "replace" else list(kinds.norms)
    ways = "replace|drop" if wishes.biases == "lora_bias" else "lora_bias|replace|drop"
    remedies = {"biases": ways, "norms": "replace|drop"}
    check_held(adapter, "peft", remedies, biases=biases, norms=norms, others=kinds.others)


def _base_of(adapter: Adapter, replaced: Mapping[ParamName, Tensor], wishes: Wishes) -> Component:
    base = wishes.base
    if base is None:
        raise AdapterError(
            f"{adapter.label}: {plural(len(replaced), 'delta')} become values that replace the base's: "
            f"{listing(replaced, limit=3)}. Give the base: ",
            Option("base_model_path", "BASE"),
            ".",
        )
    strange = [name for name, delta in replaced.items() if name not in base or base.specs[name].shape != delta.shape]
    if strange:
        raise AdapterError(f"{adapter.label}: {base.path} has no such parameters: {listing(strange, limit=3)}.")
    return base


def _with_dtype(before: Before, deltas: Mapping[ParamName, Tensor], base: Component) -> Before:
    """Note the dtype of the deltas, if reading leads back to it with the same bits."""
    dtypes = {delta.dtype for delta in deltas.values()}
    is_exact = len(dtypes) == 1 and all(
        torch.equal(_added(name, delta, base).to(delta.dtype), delta) for name, delta in deltas.items()
    )
    return replace(before, replaced=str(dtypes.pop()).removeprefix("torch.")) if is_exact else before


CODEC = Codec("peft", _matches, _decode, _encode)
