"""Formats of kohya's sd-scripts and of LyCORIS, whose keys have `_` for the dots of a module's name.

    kohya            lora_unet_<sgm name>.lora_up.weight, .lora_down.weight, .alpha
    kohya-diffusers  lora_unet_<diffusers' name>....
    lycoris          lycoris_<diffusers' name>....; norms as .w_norm, .b_norm; dense weights as .diff, .diff_b

Names are looked up in the table of modules (or among the base's, where it is at hand). Any file may mix these names;
reading takes every ending that LyCORIS and ComfyUI know (see `reading`).

What is written, and why:

- alpha, always, as fp32: bf16 is exact for integers up to 256 only. An alpha of 0 is refused, since sd-scripts and
  LyCORIS read it as the rank.
- A dense delta of a matrix or convolution, in the kohya formats: as factors, with an identity as one of them: exact.
- Biases and norms, in the kohya formats: refused unless they are dropped. Only ComfyUI would read them; sd-scripts
  ignores them, and diffusers refuses a file with one `.diff_b`. `comfyui` holds them.
- Biases in lycoris: only those of modules with a dense weight. LyCORIS ignores a `.diff_b` next to factors or alone,
  without a word, so they are refused unless they are dropped.
- Norms in lycoris: it finds a norm by its `.w_norm`, so a norm with a changed bias only gets one of zeros. When it is
  read back, a `.w_norm` of zeros next to a `.b_norm` is left out again.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from lbm_lora.adapter.formats.codec import Codec, Decoded, Encoded, Source, Wishes, check_held, only_deltas
from lbm_lora.adapter.formats.layers import dense_kinds
from lbm_lora.adapter.formats.names import BY_FLAT, BY_FLAT_SGM, SGM, flat, is_norm
from lbm_lora.adapter.formats.reading import read
from lbm_lora.adapter.formats.rebuild import module_of_matrix
from lbm_lora.adapter.module import Adapter
from lbm_lora.adapter.native import ALPHA, DIFF, DIFF_BIAS, encode_module
from lbm_lora.choices import FormatName
from lbm_lora.errors import AdapterError, listing, plural
from lbm_lora.naming import ModuleName, ParamName, bias_of, leaf_of, module_of, weight_of

UNET, LYCORIS_PREFIX = "lora_unet_", "lycoris_"
_PREFIXES = (UNET, LYCORIS_PREFIX)
W_NORM, B_NORM = ".w_norm", ".b_norm"
_REMEDIES, _LEAD = {"biases": "drop", "norms": "drop"}, "comfyui holds them. To leave them out: "
_OF_ATTENTION = re.compile(r"_attn[12]_to_\w+\.alpha$")


def _is_kohya_with_names_of_diffusers(keys: Collection[str], header: Mapping[str, str]) -> bool:
    stems = {key.partition(".")[0].removeprefix(UNET) for key in keys if key.startswith(UNET)}
    return any(stem in BY_FLAT for stem in stems) and not any(stem in BY_FLAT_SGM for stem in stems)


def _has_start(start: str | tuple[str, ...]) -> Callable[[Collection[str], Mapping[str, str]], bool]:
    return lambda keys, _: any(key.startswith(start) for key in keys)


def _decode(source: Source) -> Decoded:
    of_base = {} if source.base is None else {flat(module_of(name)): module_of(name) for name in source.base}

    def named(stem: str) -> ModuleName | None:
        prefix = next((prefix for prefix in _PREFIXES if stem.startswith(prefix)), None)
        name = stem.removeprefix(prefix or "")
        return None if prefix is None else of_base.get(name) or BY_FLAT_SGM.get(name) or BY_FLAT.get(name)

    adapter, notes = read(source, named)

    def is_ours(name: ParamName) -> bool:  # a `.w_norm` of zeros
        is_weight = is_norm(name) and leaf_of(name) == "weight" and bias_of(module_of(name)) in adapter.dense
        return is_weight and not adapter.dense[name].any()

    return replace(adapter, dense={name: one for name, one in adapter.dense.items() if not is_ours(name)}), notes


def _encode_kohya(format: FormatName, adapter: Adapter, wishes: Wishes) -> Encoded:
    only_deltas(wishes, format)
    _check_names(adapter, format)
    kinds = dense_kinds(adapter.dense)
    check_held(adapter, format, _REMEDIES, biases=kinds.biases, norms=kinds.norms, others=kinds.others, lead=_LEAD)
    tensors = _factors(adapter, format)
    for name, delta in adapter.dense.items():
        tensors |= encode_module("", module_of_matrix(_stem(format, module_of(name)), delta), torch.float32)
    count = plural(len(adapter.dense), "dense matrix", "dense matrices")
    exact = (f"{count} written as factors of full rank, exactly.",) if adapter.dense else ()
    return Encoded(tensors, notes=(*exact, *_ignored_alphas(tensors)))


def _ignored_alphas(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return a note on alphas that diffusers (0.42) ignores: those of attentions that are not the most frequent."""
    alphas = {key: float(tensor) for key, tensor in tensors.items() if key.endswith(ALPHA)}
    counts = Counter(alphas.values())
    common = max(counts, key=lambda alpha: counts[alpha], default=0.0)
    ignored = [key for key, alpha in alphas.items() if alpha != common and _OF_ATTENTION.search(key)]
    if not ignored:
        return ()
    attentions = plural(len(ignored), "attention layer")
    return (
        f"diffusers reads alpha {common:g} for {attentions} with another one. For diffusers: the format diffusers.",
    )


def _encode_lycoris(adapter: Adapter, wishes: Wishes) -> Encoded:
    only_deltas(wishes, "lycoris")
    _check_names(adapter, "lycoris")
    dense = adapter.dense
    others = [name for name in dense if leaf_of(name) not in ("weight", "bias")]
    biases = [
        name
        for name in dense
        if leaf_of(name) == "bias" and not is_norm(name) and weight_of(module_of(name)) not in dense
    ]
    check_held(adapter, "lycoris", _REMEDIES, biases=biases, norms=[], others=others, lead=_LEAD)
    tensors = _factors(adapter, "lycoris")
    for name, delta in dense.items():
        weight, bias = (W_NORM, B_NORM) if is_norm(name) else (DIFF, DIFF_BIAS)
        stem = _stem("lycoris", module_of(name))
        tensors[stem + (weight if leaf_of(name) == "weight" else bias)] = delta
        if is_norm(name) and weight_of(module_of(name)) not in dense:
            tensors[stem + weight] = torch.zeros_like(delta)
    return Encoded(tensors)


def _stem(format: FormatName, name: ModuleName) -> ModuleName:
    prefix = LYCORIS_PREFIX if format == "lycoris" else UNET
    return ModuleName(prefix + flat(SGM[name] if format == "kohya" else name))


def _factors(adapter: Adapter, format: FormatName) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, module in adapter.modules.items():
        tensors |= encode_module("", replace(module, name=_stem(format, name)), torch.float32)
    return tensors


def _check_names(adapter: Adapter, format: FormatName) -> None:
    strange = [name for name in {*adapter.modules, *map(module_of, adapter.dense)} if name not in SGM]
    if strange:
        raise AdapterError(
            f"{adapter.label}: the format {format} has keys for the modules of SDXL's UNet only, and not for "
            f"{listing(sorted(strange), limit=3)}. Write the LoRA as comfyui or native."
        )
    silent = [name for name, module in adapter.modules.items() if module.alpha == 0]
    if silent:
        raise AdapterError(
            f"{adapter.label}: {plural(len(silent), 'module')} with alpha 0, which readers of {format} take for the "
            f"rank: {listing(silent, limit=3)}. Remove them."
        )


LYCORIS = Codec("lycoris", _has_start(LYCORIS_PREFIX), _decode, _encode_lycoris)
DIFFUSERS_NAMES = Codec(
    "kohya-diffusers", _is_kohya_with_names_of_diffusers, _decode, partial(_encode_kohya, "kohya-diffusers")
)
KOHYA = Codec("kohya", _has_start((UNET, "lora_te")), _decode, partial(_encode_kohya, "kohya"))
