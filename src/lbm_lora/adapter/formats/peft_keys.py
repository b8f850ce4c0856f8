"""Keys of PEFT and of diffusers, which name a layer's factors alike, read into modules and dense deltas.

<module>.lora_A.weight, .lora_B.weight        down and up; in memory `.lora_A.<adapter>.weight`
<module>.lora_B.bias                          bias of up, which the scaling multiplies
<module>.lora_magnitude_vector[.weight]       DoRA: length of each row of the tuned weight
<module>.alpha, .diff, .diff_b                what other writers put next to them: as in native files
<module>.lora.down.weight, .lora.up.weight    diffusers before PEFT, also `.lora_linear_layer.`
<attention>.processor.to_q_lora.down.weight   diffusers before that; `to_out_lora` is `to_out.0`
<module>.base_layer.<leaf>, <module>.<leaf>   values in place of the base's: `bias="all"`, `modules_to_save`
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from lbm_lora.adapter.formats.codec import Source
from lbm_lora.adapter.formats.lora_config import LoraConfig
from lbm_lora.adapter.formats.reading import Grouped, add_delta, check_unrepeated, dora
from lbm_lora.adapter.formats.rebuild import dora_note
from lbm_lora.adapter.module import LoraModule
from lbm_lora.adapter.native import DOWN, UP, alpha_in, module_of_parts
from lbm_lora.checkpoint import Component
from lbm_lora.errors import AdapterError, Option, listing, plural
from lbm_lora.naming import ModuleName, ParamName, bias_of, weight_of

_ROLES = {
    "lora_A": "down",
    "lora_B": "up",
    "lora.down": "down",
    "lora.up": "up",
    "lora_linear_layer.down": "down",
    "lora_linear_layer.up": "up",
}
_FACTOR = re.compile(r"(.+)\.(lora_[AB]|lora\.down|lora\.up|lora_linear_layer\.(?:down|up))(?:\.([^.]+))?\.weight")
_BIAS = re.compile(r"(.+)\.lora_B(?:\.([^.]+))?\.bias")
_OLDEST = re.compile(r"(.+)\.processor\.to_(q|k|v|out)_lora\.(down|up)\.weight")
_MAGNITUDE = re.compile(r"(.+)\.lora_magnitude_vector(?:\.(?!weight$)([^.]+))?(?:\.weight)?")
_NATIVE = re.compile(r"(.+)(\.alpha|\.diff|\.diff_b)")
_SAVED = re.compile(r"(.+)\.modules_to_save\.[^.]+\.([^.]+)")


def is_factor(key: str) -> bool:
    """Return whether a key is one of a layer's factors."""
    return bool(_FACTOR.fullmatch(key) or _OLDEST.fullmatch(key))


def is_in_memory(key: str) -> bool:
    """Return whether a factor's key contains the adapter's name, as in a live PEFT model."""
    match = _FACTOR.fullmatch(key)
    return match is not None and match[3] is not None


def decode_layers(
    tensors: Mapping[str, Tensor], config: LoraConfig | None, source: Source
) -> tuple[dict[ModuleName, LoraModule], dict[ParamName, Tensor], list[str]]:
    """Return modules, dense deltas and notes of tensors whose keys have no prefix. Deltas of zeros are left out.

    Args:
        config: of the layers; without one their alpha is in the file, or their rank.
        source: says where the tensors are from; DoRA and values that replace the base's need its base.
    """
    found, where = _grouped(tensors, source.path), source.path
    modules: dict[ModuleName, LoraModule] = {}
    dense, doras = dict(found.deltas), list[Tensor]()
    for name, parts in found.factors.items():
        module = _module(name, parts, config, where)
        for role, what in (("bias", "biases of lora_B"), ("dora_scale", "magnitudes")):
            if role in parts and parts[role].numel() != module.shape[0]:
                count = f"{parts[role].numel()} {what} for {module.shape[0]} outputs"
                raise AdapterError(f"{where}: {name} has {count}. It is damaged.")
        bias = parts["bias"] if "bias" in parts and parts["bias"].any() else None
        if bias is not None:
            add_delta(dense, bias_of(name), bias if module.scaling == 1 else bias.float() * module.scaling, source)
        if "dora_scale" in parts:
            if bias is not None:
                raise AdapterError(f"{where}: {name} has DoRA magnitudes and a bias of lora_B, which is not read.")
            column = parts["dora_scale"].reshape(-1, *(1 for _ in module.shape[1:]))
            doras.append(dora(source, name, module.delta(), column))
            add_delta(dense, weight_of(name), doras[-1], source)
        elif config is not None and config.use_dora:
            raise AdapterError(f"{where}: {name} has no lora_magnitude_vector, but use_dora is on. It is incomplete.")
        else:
            modules[name] = module
    for name, delta in _deltas(found.values, source.base, where).items():
        dense[name] = dense[name].float() + delta if name in dense else delta
    return modules, dense, [dora_note(len(doras), doras)] if doras else []


def _grouped(tensors: Mapping[str, Tensor], where: Path) -> Grouped:
    found, adapters, twice = Grouped(), set[str](), list[str]()
    for key, tensor in tensors.items():
        adapter = None
        if match := _FACTOR.fullmatch(key):
            name, role, adapter = match[1], _ROLES[match[2]], match[3]
        elif match := _BIAS.fullmatch(key):
            name, role, adapter = match[1], "bias", match[2]
        elif match := _OLDEST.fullmatch(key):
            name, role = f"{match[1]}.to_{match[2]}{'.0' if match[2] == 'out' else ''}", match[3]
        elif match := _MAGNITUDE.fullmatch(key):
            name, role, adapter = match[1], "dora_scale", match[2]
        elif match := _NATIVE.fullmatch(key):
            found.has_room(ModuleName(match[1]), match[2], tensor)
            continue
        else:
            if ".original_module." not in key:  # the base's own value next to the one that replaces it
                twice += [] if found.values.setdefault(_param(key), tensor) is tensor else [key]
            continue
        adapters |= {adapter} if adapter else set()
        twice += [] if found.factors.setdefault(ModuleName(name), {}).setdefault(role, tensor) is tensor else [key]
    if len(adapters) > 1:
        raise AdapterError(f"{where} holds {len(adapters)} adapters: {listing(sorted(adapters))}. Save one of them.")
    check_unrepeated(twice, where)
    return found


def _param(key: str) -> ParamName:
    match = _SAVED.fullmatch(key)
    return ParamName(f"{match[1]}.{match[2]}" if match else key.replace(".base_layer.", "."))


def _module(name: ModuleName, parts: Mapping[str, Tensor], config: LoraConfig | None, where: Path) -> LoraModule:
    missing = [key for role, key in (("down", "lora_A"), ("up", "lora_B")) if role not in parts]
    if missing:
        raise AdapterError(f"{where}: {name} has no {' and no '.join(missing)}. The file is incomplete.")
    module = module_of_parts(name, {UP: parts["up"], DOWN: parts["down"]}, where)
    stored = alpha_in(parts["alpha"], name, where) if "alpha" in parts else None
    said = stored if config is None else config.alpha_of(name, module.rank, where)
    if stored is not None and stored != said:
        raise AdapterError(
            f"{where}: {name} has alpha {stored:g}, but the LoRA's config says {said:g}. Remove one of them."
        )
    return module if said is None else replace(module, alpha=said)


def _deltas(values: Mapping[ParamName, Tensor], base: Component | None, where: Path) -> dict[ParamName, Tensor]:
    """Return what values that replace the base's add to them, in fp32, without those that are the base's."""
    if not values:
        return {}
    if base is None:
        raise AdapterError(
            f"{where} holds {plural(len(values), 'key')} besides factors: {listing(values, limit=3)}. If their values "
            "replace the base's, `lbm-lora convert` reads them with the base: ",
            Option("base_model_path", "BASE"),
            ".",
        )
    strange = [name for name, value in values.items() if name not in base or base.specs[name].shape != value.shape]
    if strange:
        raise AdapterError(
            f"{where}: {plural(len(strange), 'value')} replace none of {base.path}, by name and shape: "
            f"{listing(strange, limit=3)}."
        )
    deltas = {name: value.float() - base.read(name).float() for name, value in values.items()}
    return {name: delta for name, delta in deltas.items() if delta.any()}
