"""Layers that ComfyUI can cast and stream, in place of torch's.

With ComfyUI's own layer classes a network can be loaded in part (`--lowvram`, `--novram`), and computed in another
dtype than the one it is stored in (`--fp8_e4m3fn-unet`).
"""

from typing import Any

from torch import nn

_SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("in_features", "out_features"),
    nn.Conv2d: ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    nn.GroupNorm: ("num_groups", "num_channels", "eps", "affine"),
    nn.LayerNorm: ("normalized_shape", "eps", "elementwise_affine"),
}
"""Class of a layer -> its arguments, which are also its attributes; a bias apart."""


def use_layers(network: nn.Module, operations: Any) -> None:
    """Replace each Linear, Conv2d, GroupNorm and LayerNorm of a network on the meta device.

    Args:
        operations: the classes, as attributes of the same names: `comfy.ops.manual_cast` or the like.
    """
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            settings = _SETTINGS.get(type(layer))
            if settings is not None:
                given = {key: getattr(layer, key) for key in settings}
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    given["bias"] = layer.bias is not None
                made = getattr(operations, type(layer).__name__)(**given, device="meta")
                parent.register_module(name, made.train(layer.training))


def stop_when_interrupted(network: nn.Module) -> None:
    """Make a network look for ComfyUI's Cancel before each of its layers, so that a long call ends soon."""
    from comfy.model_management import (  # pyright: ignore[reportMissingImports]
        throw_exception_if_processing_interrupted,
    )

    def look(_: nn.Module, __: tuple[Any, ...]) -> None:
        throw_exception_if_processing_interrupted()

    for layer in network.modules():
        if isinstance(layer, tuple(_SETTINGS)):
            layer.register_forward_pre_hook(look)
