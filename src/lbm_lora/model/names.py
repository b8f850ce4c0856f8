"""Exact names and shapes of an LBM's tensors for any configuration, and the check of a file against them.

Names are diffusers' own, read from networks on the meta device, which have shapes but no memory.
"""

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeVar, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from lbm_lora.checkpoint import TensorSpec
from lbm_lora.errors import CheckpointError, ConfigError, listing
from lbm_lora.model.config import LBMConfig
from lbm_lora.model.constants import ITERATIONS_KEY, VAE_PREFIX
from lbm_lora.naming import DENOISER_PREFIX

Shapes = dict[str, tuple[int, ...]]
"""Map from tensor name to shape, in diffusers' order."""

Network = TypeVar("Network", bound=torch.nn.Module)

MOST = {"layers_per_block": 64, "transformer_layers_per_block": 256, "block_out_channels": 2**16}
"""Largest numbers in the configuration of a network."""
MOST_OF_OTHERS = 2**20
_MOST_PARTS = 64
_SIGNED = ("_factor", "_shift", "_mean")
"""How the names of numbers end that may be negative."""

_IGNORED_PREFIXES = ("lpips_loss.", "conditioner.")


def empty_unet(config: Mapping[str, Any]) -> UNet2DConditionModel:
    """Build a UNet from a diffusers configuration on the meta device."""
    return _empty(UNet2DConditionModel, config, "unet")


def empty_vae(config: Mapping[str, Any]) -> AutoencoderKL:
    """Build a VAE from a diffusers configuration on the meta device."""
    return _empty(AutoencoderKL, config, "vae")


def checkpoint_shapes(config: LBMConfig) -> Shapes:
    """Return keys and shapes of a complete LBM checkpoint: denoiser, VAE and `num_iterations`."""
    denoiser = {DENOISER_PREFIX + name: shape for name, shape in shapes_of(empty_unet(config.unet_config)).items()}
    vae = {VAE_PREFIX + name: shape for name, shape in shapes_of(empty_vae(config.vae_config)).items()}
    return denoiser | vae | {ITERATIONS_KEY: ()}


def shapes_of(module: torch.nn.Module) -> Shapes:
    """Return names and shapes of a module's tensors."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def check_shapes(specs: Mapping[str, TensorSpec], expected: Shapes, *, where: object) -> None:
    """Check that a checkpoint has exactly the expected tensors.

    `num_iterations` may be missing or have one element of any shape (older trainers), and tensors of a training
    loss (`lpips_loss.`) may be present: they are not part of the model.
    """
    missing = [name for name in expected if name not in specs and name != ITERATIONS_KEY]
    unexpected = [name for name in specs if name not in expected and not name.startswith(_IGNORED_PREFIXES)]
    mismatched = [
        f"{name}: {specs[name].shape} in the file, {shape} in the configuration"
        for name, shape in expected.items()
        if name in specs and name != ITERATIONS_KEY and specs[name].shape != shape
    ]
    parts = [
        f"{len(names)} {kind}: {listing(names, limit=4)}"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", mismatched),
        )
        if names
    ]
    if parts:
        raise CheckpointError(
            f"{where} does not match its configuration. {'. '.join(parts)}. "
            "Is this the right file, and is the config.yaml next to it the right one?"
        )


def _empty(kind: type[Network], config: Mapping[str, Any], section: str) -> Network:
    known = {name: one.default for name, one in inspect.signature(kind.__init__).parameters.items() if name != "self"}
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    for key in settings:
        if key not in known:
            near = get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ConfigError(f"{section}: {kind.__name__} has no setting '{key}'.{hint}")
        _check_value(section, key, settings[key], known[key])
    try:
        with torch.device("meta"):
            return kind(**settings)
    except Exception as error:  # diffusers computes with values that it does not check
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(f"{section}: {kind.__name__} cannot be built: {said}") from None


def _check_value(section: str, key: str, value: object, default: object) -> None:
    """Check a setting against the bounds, so that no text can ask for a network that takes all memory, or for ever."""
    most = MOST.get(key, MOST_OF_OTHERS)
    parts: list[object] = list(cast(list[object], value)) if isinstance(value, (list, tuple)) else [value]
    parts = [one for part in parts for one in (cast(list[object], part) if isinstance(part, (list, tuple)) else [part])]
    numbers = [part for part in parts if isinstance(part, (int, float))]
    if len(parts) > _MOST_PARTS or not all(abs(number) <= most for number in numbers):
        raise ConfigError(f"{section}: {key} must be at most {most:,}, and a list at most {_MOST_PARTS} long.")
    if type(default) in (int, float) and any(isinstance(number, bool) for number in numbers):
        raise ConfigError(f"{section}: {key} must be a number, got {str(value)[:60]!r}.")
    below = [number for number in numbers if type(number) is int and number < 0]
    if below and not key.endswith(_SIGNED):
        raise ConfigError(f"{section}: {key} must not be negative, got {below[0]}.")
    if (
        key.endswith("_factor")
        and value is not None
        and (isinstance(value, bool) or not isinstance(value, (int, float)))
    ):
        raise ConfigError(f"{section}: {key} must be a number, got {str(value)[:60]!r}.")
    if key == "sample_size" and value is not None and (type(value) is not int or value < 1):
        raise ConfigError(f"{section}: {key} must be a whole number above 0, got {str(value)[:60]!r}.")
