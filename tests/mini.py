"""The denoiser of the bundled mini model with LoRAs that change all of it: what readers of other formats are tested on.

Rounding in fp32 makes two ways to the same weights differ by about 7e-7 in the output; biases, norms or scalings that
are lost, by 0.03 and more.
"""

import copy
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from foreign import Reading, Writing
from lbm_lora import Adapter, LoraModule, ScaledAdapter, bundled, fuse_module, load_model, open_checkpoint
from lbm_lora.checkpoint import Component
from lbm_lora.naming import ModuleName, ParamName, module_of

BOUND = 2e-6
"""Largest relative difference of two outputs of the denoiser with the same LoRA."""


@cache
def _denoiser() -> UNet2DConditionModel:
    return load_model(bundled.TUNED / "model.safetensors", dtype=torch.float32).denoiser


def denoiser() -> UNet2DConditionModel:
    """A copy of the denoiser in fp32, the base of these tests."""
    return copy.deepcopy(_denoiser())


@cache
def base() -> Component:
    """Its tensors, in fp32."""
    return open_checkpoint(_denoiser().state_dict()).component()


@torch.no_grad()
def output(unet: torch.nn.Module) -> Tensor:
    """The denoiser's output at two points."""
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return unet(latents, torch.tensor([900.0, 250.0]), encoder_hidden_states=None, return_dict=False)[0]


def difference(unet: torch.nn.Module, adapter: Adapter) -> float:
    """Relative distance of a network's output from that of the base with a LoRA fused in."""
    fused = denoiser()
    fuse_module(fused, [ScaledAdapter(adapter)])
    expected = output(fused)
    return float((output(unet) - expected).norm() / expected.norm())


def lora(keep: Callable[[ParamName], bool] = lambda name: True, *, attention_alpha: float | None = None) -> Adapter:
    """A LoRA of the modules, biases and norms whose param names are accepted, of several ranks and scalings.

    Args:
        attention_alpha: alpha of all attention layers.
    """
    random = torch.Generator().manual_seed(1)
    modules: dict[ModuleName, LoraModule] = {}
    dense: dict[ParamName, Tensor] = {}
    for place, (key, weight) in enumerate(_denoiser().state_dict().items()):
        name = ParamName(key)
        if not keep(name):
            continue
        size = 0.2 * weight.std() + 1e-3
        if weight.ndim == 1:
            dense[name] = size * torch.randn(weight.shape, generator=random)
            continue
        # PEFT compares every module with every pattern: many exceptions take it minutes
        rank, alpha = (1 + place % 4, 1.0 + place % 3) if place % 41 == 0 else (2, 3.0)
        if attention_alpha is not None and (".attn1." in name or ".attn2." in name):
            alpha = attention_alpha
        down = torch.randn(rank, *weight.shape[1:], generator=random)
        up = torch.randn(weight.shape[0], rank, *(1 for _ in weight.shape[2:]), generator=random)
        module = module_of(name)
        modules[module] = LoraModule(module, down, up * (size / alpha), alpha)
    return Adapter(modules, dense, prefix="denoiser.")


def params(cases: Iterable[Reading | Writing]) -> list[Any]:
    """Cases for `pytest.mark.parametrize`, with their names and marks."""
    return [
        pytest.param(
            case,
            id=case.what if isinstance(case, Writing) else f"{case.to}, {case.call.partition(')')[0]}), {case.holds}",
            marks=[pytest.mark.slow] if case.slow else [],
        )
        for case in cases
    ]
