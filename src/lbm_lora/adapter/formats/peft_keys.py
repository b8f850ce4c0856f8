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
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from lbm_lora.adapter.formats.lora_config import LoraConfig
from lbm_lora.adapter.formats.reading import check_unrepeated
from lbm_lora.adapter.formats.rebuild import base_weight, dora_delta, dora_note
from lbm_lora.adapter.module import LoraModule
from lbm_lora.adapter.native import DOWN, UP, alpha_in, decode
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
_ALPHA = re.compile(r"(.+)\.alpha")
_DENSE = re.compile(r"(.+)(\.diff|\.diff_b)")
_SAVED = re.compile(r"(.+)\.modules_to_save\.[^.]+\.([^.]+)")


@dataclass(frozen=True)
class _Keys:
    """Tensors of a file by what they are."""

    parts: dict[ModuleName, dict[str, Tensor]]
    dense: dict[ParamName, Tensor]
    values: dict[ParamName, Tensor]


def is_factor(key: str) -> bool:
    """Return whether a key is one of a layer's factors."""
    return bool(_FACTOR.fullmatch(key) or _OLDEST.fullmatch(key))


def is_in_memory(key: str) -> bool:
    """Return whether a key is a factor's as it is in a model with PEFT's layers: with the adapter's name."""
    match = _FACTOR.fullmatch(key)
    return match is not None and match[3] is not None


def decode_layers(
    tensors: Mapping[str, Tensor], config: LoraConfig | None, base: Component | None, where: Path
) -> tuple[dict[ModuleName, LoraModule], dict[ParamName, Tensor], list[str]]:
    """Return modules, dense deltas and notes of tensors whose keys have no prefix. Deltas of zeros are left out.

    Args:
        config: of the layers; without one their alpha is in the file, or their rank.
        base: needed for DoRA and for values that replace the base's.
    """
    keys = _sorted_out(tensors, where)
    modules = _modules(keys.parts, config, where)
    dense = dict(keys.dense)
    for name, part in keys.parts.items():
        if "bias" in part and part["bias"].numel() != modules[name].shape[0]:
            raise _miscounted(modules[name], "biases of lora_B", part["bias"], where)
        if "bias" in part and part["bias"].any():
            scaling = modules[name].scaling
            _check_free(bias_of(name), dense, where)
            dense[bias_of(name)] = part["bias"] if scaling == 1 else part["bias"].float() * scaling
        if "magnitude" in part:
            _check_free(weight_of(name), dense, where)
            dense[weight_of(name)] = _dora(modules.pop(name), part, base, where)
        elif config is not None and config.use_dora:
            raise AdapterError(f"{where}: {name} has no lora_magnitude_vector, but use_dora is on. It is incomplete.")
    for name, delta in _deltas(keys.values, base, where).items():
        dense[name] = dense[name].float() + delta if name in dense else delta
    doras = [dense[weight_of(name)] for name, part in keys.parts.items() if "magnitude" in part]
    return modules, dense, [dora_note(len(doras), doras)] if doras else []


def _check_free(name: ParamName, dense: Mapping[ParamName, Tensor], where: Path) -> None:
    if name in dense:
        raise AdapterError(f"{where}: {name} has two deltas. Remove one of them.")


def _sorted_out(tensors: Mapping[str, Tensor], where: Path) -> _Keys:
    parts: dict[ModuleName, dict[str, Tensor]] = {}
    native: dict[str, Tensor] = {}
    values: dict[ParamName, Tensor] = {}
    adapters: set[str] = set()
    twice: list[str] = []
    for key, tensor in tensors.items():
        if match := _FACTOR.fullmatch(key):
            name, role, adapter = match[1], _ROLES[match[2]], match[3]
        elif match := _BIAS.fullmatch(key):
            name, role, adapter = match[1], "bias", match[2]
        elif match := _OLDEST.fullmatch(key):
            name, role, adapter = f"{match[1]}.to_{match[2]}{'.0' if match[2] == 'out' else ''}", match[3], None
        elif match := _MAGNITUDE.fullmatch(key):
            name, role, adapter = match[1], "magnitude", match[2]
        elif match := _ALPHA.fullmatch(key):
            name, role, adapter = match[1], "alpha", None
        elif _DENSE.fullmatch(key):
            native[key] = tensor
            continue
        else:
            if ".original_module." not in key:  # the base's own value next to the one that replaces it
                twice += [] if values.setdefault(_param(key), tensor) is tensor else [key]
            continue
        adapters |= {adapter} if adapter else set()
        twice += [] if parts.setdefault(ModuleName(name), {}).setdefault(role, tensor) is tensor else [key]
    if len(adapters) > 1:
        raise AdapterError(f"{where} holds {len(adapters)} adapters: {listing(sorted(adapters))}. Save one of them.")
    check_unrepeated(twice, where)
    _, dense = decode(native, "", where)
    return _Keys(parts, dense, values)


def _param(key: str) -> ParamName:
    """Return the parameter that a value is for."""
    match = _SAVED.fullmatch(key)
    return ParamName(f"{match[1]}.{match[2]}" if match else key.replace(".base_layer.", "."))


def _modules(
    parts: Mapping[ModuleName, Mapping[str, Tensor]], config: LoraConfig | None, where: Path
) -> dict[ModuleName, LoraModule]:
    for name, part in parts.items():
        missing = [key for role, key in (("down", "lora_A"), ("up", "lora_B")) if role not in part]
        if missing:
            raise AdapterError(f"{where}: {name} has no {' and no '.join(missing)}. The file is incomplete.")
    native = {name + UP: part["up"] for name, part in parts.items()}
    found, _ = decode(native | {name + DOWN: part["down"] for name, part in parts.items()}, "", where)
    return {name: _scaled(module, parts[name].get("alpha"), config, where) for name, module in found.items()}


def _scaled(module: LoraModule, stored: Tensor | None, config: LoraConfig | None, where: Path) -> LoraModule:
    alpha = None if stored is None else alpha_in(stored, module.name, where)
    if config is None:
        return module if alpha is None else replace(module, alpha=alpha)
    said = config.alpha_of(module.name, module.rank, where)
    if alpha is not None and alpha != said:
        raise AdapterError(
            f"{where}: {module.name} has alpha {alpha:g}, but the LoRA's config says {said:g}. Remove one of them."
        )
    return replace(module, alpha=said)


def _dora(module: LoraModule, part: Mapping[str, Tensor], base: Component | None, where: Path) -> Tensor:
    weight = base_weight(base, module.name, module.shape, where)
    magnitude = part["magnitude"]
    if magnitude.numel() != module.shape[0]:
        raise _miscounted(module, "magnitudes", magnitude, where)
    if "bias" in part and part["bias"].any():
        raise AdapterError(f"{where}: {module.name} has DoRA magnitudes and a bias of lora_B, which is not read.")
    column = magnitude.reshape(-1, *(1 for _ in module.shape[1:]))
    return dora_delta(weight, module.delta(), column)


def _miscounted(module: LoraModule, what: str, found: Tensor, where: Path) -> AdapterError:
    return AdapterError(
        f"{where}: {module.name} has {found.numel()} {what} for {module.shape[0]} outputs. It is damaged."
    )


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
