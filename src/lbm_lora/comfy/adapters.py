"""LoRAs onto models that run in ComfyUI: a stock MODEL, or an LBM_MODEL of ComfyUI-LBMWrapper."""

import copy
from pathlib import Path
from typing import Any

from torch import nn

from lbm_lora.adapter import Adapter, LoraScale, load_adapter
from lbm_lora.adapter.formats import Wishes, codec_named
from lbm_lora.apply import ScaledAdapter, adapted_to_lbm, check_base, check_fit, inject
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.comfy.network import loaded_lbm
from lbm_lora.errors import AdapterError
from lbm_lora.naming import ParamName

_PREFIX = "diffusion_model."


def scale_of(strength: float, blocks: str) -> LoraScale:
    """Return the scale of a LoRA: `strength`, with exceptions by layer (`down_blocks=0.5,attn1=0`)."""
    return LoraScale.parse(f"{strength!r},{blocks}" if blocks.strip() else strength)


def with_lora(model: Any, lora: Path | Adapter, scale: LoraScale) -> Any:
    """Return a model of the same kind with a LoRA. The given one is left as it is, bit for bit."""
    if isinstance(model, nn.Module | dict):
        return _onto_module(model, lora, scale)
    loaded = loaded_lbm(model)
    with open_checkpoint(loaded.path) as checkpoint:
        base = checkpoint.component()
        read = lora if isinstance(lora, Adapter) else load_adapter(lora, base=base)
        adapter = adapted_to_lbm(read, base.shapes).adapter
        check_fit(adapter, base.shapes)
        check_base(adapter, base, found=loaded.found if adapter.metadata.base_fingerprint else None)
    return _onto_patcher(model, ScaledAdapter(adapter, scale.plain))


def _onto_patcher(model: Any, scaled: ScaledAdapter) -> Any:
    """Return a clone of a MODEL with the LoRA as patches of ComfyUI, which it applies, stacks and takes out."""
    import comfy.lora  # pyright: ignore[reportMissingImports]

    keys = {_PREFIX + name: f"{_PREFIX}{name}.weight" for name in _modules(scaled.adapter)}
    tensors = codec_named("comfyui").encode(scaled.adapter, Wishes()).tensors
    patches: dict[str, Any] = comfy.lora.load_lora(dict(tensors), keys)
    clone = model.clone()
    scales = {_PREFIX + name: scale for name, scale in scaled.scales.items()}
    for scale in sorted(set(scales.values()) - {0.0}):
        clone.add_patches({key: patch for key, patch in patches.items() if scales[key] == scale}, scale)
    return clone


def _modules(adapter: Adapter) -> set[str]:
    return {name.rpartition(".")[0] for name in adapter.params}


def _onto_module(model: Any, lora: Path | Adapter, scale: LoraScale) -> nn.Module:
    """Return a copy of an LBM_MODEL with the LoRA computed next to its weights.

    The copy shares every parameter with the original but those that dense deltas are added to.
    """
    denoiser = getattr(model, "denoiser", None)
    if not isinstance(denoiser, nn.Module):
        raise AdapterError(
            f"this LBM_MODEL is a {type(model).__name__} without a denoiser. LoRAs fit the LBM_MODEL of "
            "ComfyUI-LBMWrapper, and the MODEL of the node Load LBM Model."
        )
    shapes = {ParamName(name): tuple(parameter.shape) for name, parameter in denoiser.named_parameters()}
    read = lora if isinstance(lora, Adapter) else load_adapter(lora)
    adapter = adapted_to_lbm(read, shapes).adapter
    check_fit(adapter, shapes)
    dense = {id(parameter) for name, parameter in denoiser.named_parameters() if name in adapter.dense}
    shared = {id(parameter): parameter for parameter in model.parameters() if id(parameter) not in dense}
    made = copy.deepcopy(model, dict[int, Any](shared))
    inject(made.denoiser, [ScaledAdapter(adapter, scale.plain)])
    return made
