"""An LBM checkpoint as ComfyUI's own MODEL and VAE.

The denoiser is diffusers' UNet behind the signature that ComfyUI calls, so the names of its layers are diffusers': a
LoRA file in the format comfyui, or of kohya's kind on diffusers' names, fits ComfyUI's own loaders.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from lbm_lora.checkpoint import Checkpoint, Fingerprint, fingerprint, open_checkpoint
from lbm_lora.errors import ConfigError
from lbm_lora.model.bridge_pipeline import model_size, pixels_per_latent
from lbm_lora.model.build import fill, refuse_conditioning
from lbm_lora.model.config import LBMConfig
from lbm_lora.model.constants import VAE_PREFIX
from lbm_lora.model.names import check_shapes, checkpoint_shapes, empty_unet, empty_vae
from lbm_lora.model.resolve import resolve_config
from lbm_lora.naming import DENOISER_PREFIX

Precision = Literal["auto", "bf16", "fp16", "fp32"]

_KEY = "lbm_lora"
"""Name of the attachment of a MODEL that says what it was loaded from."""
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class LoadedLBM:
    """Origin of an LBM's MODEL.

    Attributes:
        size: square root of the pixel budget that the model was made for.
        pixels_per_latent: image pixels per latent pixel, along a side.
    """

    path: Path
    config: LBMConfig
    size: int
    pixels_per_latent: int

    @cached_property
    def found(self) -> Fingerprint:
        """The fingerprint of the denoiser; the file is read for it once."""
        with open_checkpoint(self.path) as checkpoint:
            return fingerprint(checkpoint.component())


class Denoiser(UNet2DConditionModel):
    """diffusers' UNet as ComfyUI calls a diffusion model. Conditioning is ignored: an LBM sees the image alone."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, **_: Any
    ) -> Tensor:
        """Return the prediction of source - target for latents [batch, channels, height, width]."""
        return super().forward(x, timesteps, encoder_hidden_states=None).sample  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]


class Autoencoder(AutoencoderKL):
    """diffusers' VAE as ComfyUI calls one: latents are the mean of the posterior, without the scaling of latents."""

    device: torch.device | None = None  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    """Where ComfyUI has put it; diffusers' property of this name cannot be set."""

    def encode(self, x: Tensor, *_: Any, **__: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return latents of images [batch, 3, height, width] in [-1, 1]."""
        posterior: Any = super().encode(x)
        return posterior.latent_dist.mean - (self.config["shift_factor"] or 0.0)

    def decode(self, z: Tensor, *_: Any, **__: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return images in [-1, 1], about, of latents."""
        latents: Any = z + (self.config["shift_factor"] or 0.0)
        return super().decode(latents, return_dict=False)[0]


def load(path: Path, precision: Precision = "auto") -> tuple[Any, Any]:
    """Return the MODEL and the VAE of a checkpoint.

    Args:
        precision: of the denoiser; `auto` is ComfyUI's own choice, which its flags decide (`--fp8_e4m3fn-unet`).

    Raises:
        CheckpointError: the file cannot be read, or its tensors are not those of its configuration.
        ConfigError: the configuration is missing or wrong, or asks for conditioning images.
    """
    with open_checkpoint(path) as checkpoint:
        config = resolve_config(checkpoint)
        refuse_conditioning(config, where=checkpoint.path)
        check_shapes(checkpoint.specs, checkpoint_shapes(config), where=checkpoint.path)
        return _model(checkpoint, config, precision), _vae(checkpoint, config)


def loaded_lbm(model: Any) -> LoadedLBM:
    """Return what a MODEL was loaded from.

    Raises:
        ConfigError: it is not an LBM of ours.
    """
    found = getattr(model, "attachments", {}).get(_KEY)
    if not isinstance(found, LoadedLBM):
        name = type(getattr(model, "model", model)).__name__
        raise ConfigError(f"this MODEL is not an LBM: it holds a {name}. Load an LBM with the node Load LBM Model.")
    return found


def _model(checkpoint: Checkpoint, config: LBMConfig, precision: Precision) -> Any:
    """Return a ModelPatcher over a stock BaseModel with the denoiser in it."""
    import comfy.model_base as model_base  # pyright: ignore[reportMissingImports]
    import comfy.model_management as management  # pyright: ignore[reportMissingImports]
    import comfy.model_patcher as patcher  # pyright: ignore[reportMissingImports]
    import comfy.ops as ops  # pyright: ignore[reportMissingImports]
    import comfy.supported_models_base as supported  # pyright: ignore[reportMissingImports]

    device, offload = management.get_torch_device(), management.unet_offload_device()
    dtype = _dtype(checkpoint, precision, device)
    cast = management.unet_manual_cast(dtype, device, [torch.bfloat16, torch.float32])
    settings = supported.BASE({"disable_unet_model_creation": True, "in_channels": config.unet_input_channels})
    settings.latent_format = _latent_format(config)
    settings.manual_cast_dtype = cast
    model = model_base.BaseModel(settings, model_type=model_base.ModelType.FLOW)
    model.model_sampling = _sampling(settings)
    network = empty_unet(config.unet_config)
    use_layers(network, ops.pick_operations(dtype, cast))
    fill(network, checkpoint, DENOISER_PREFIX, device=offload, dtype=dtype)
    network.__class__ = Denoiser
    stop_when_interrupted(network)
    model.diffusion_model = network
    made = patcher.ModelPatcher(model, load_device=device, offload_device=offload)
    vae = empty_vae(config.vae_config)
    made.set_attachments(
        _KEY,
        LoadedLBM(
            path=checkpoint.path,
            config=config,
            size=model_size(network, vae),
            pixels_per_latent=pixels_per_latent(vae),
        ),
    )
    return made


def _dtype(checkpoint: Checkpoint, precision: Precision, device: torch.device) -> torch.dtype:
    """Return the dtype that the denoiser is stored in. fp16 is never chosen for the user: LBMs can leave its range."""
    import comfy.model_management as management  # pyright: ignore[reportMissingImports]

    if precision != "auto":
        return _DTYPES[precision]
    specs = [spec for name, spec in checkpoint.specs.items() if name.startswith(DENOISER_PREFIX)]
    return management.unet_dtype(
        device=device,
        model_params=sum(spec.numel for spec in specs),
        supported_dtypes=[torch.bfloat16, torch.float32],
        weight_dtype=specs[0].dtype,
    )


def _latent_format(config: LBMConfig) -> Any:
    import comfy.latent_formats as latent_formats  # pyright: ignore[reportMissingImports]

    made = latent_formats.SDXL()
    made.scale_factor = config.vae_config["scaling_factor"]
    return made


def _sampling(settings: Any) -> Any:
    """Return ComfyUI's sampling of a flow, which starts from the latent image instead of noise.

    A bridge runs from the source to the target, so what other models call the start of img2img is its only start. For
    an empty latent image ComfyUI's own rule stays: a source that is given as noise then works too.
    """
    import comfy.model_sampling as sampling  # pyright: ignore[reportMissingImports]

    class BridgeSampling(sampling.ModelSamplingDiscreteFlow, sampling.CONST):  # pyright: ignore[reportUntypedBaseClass]
        def noise_scaling(self, sigma: Any, noise: Any, latent_image: Any, max_denoise: bool = False) -> Any:
            if latent_image is not None and torch.count_nonzero(latent_image) > 0:
                return latent_image
            return super().noise_scaling(sigma, noise, latent_image, max_denoise)

    return BridgeSampling(settings)


def _vae(checkpoint: Checkpoint, config: LBMConfig) -> Any:
    """Return a stock VAE object around the checkpoint's own VAE.

    ComfyUI's class builds its networks from shapes of a few known models, and its SDXL encoder samples the posterior.
    An LBM needs the mean, and its VAE may be narrower: the object is made around a small network, which is replaced.
    """
    import comfy.model_management as management  # pyright: ignore[reportMissingImports]
    import comfy.model_patcher as patcher  # pyright: ignore[reportMissingImports]
    import comfy.ops as ops  # pyright: ignore[reportMissingImports]
    import comfy.sd as sd  # pyright: ignore[reportMissingImports]
    from comfy.ldm.models.autoencoder import (  # pyright: ignore[reportMissingImports]
        AutoencoderKL as StockAutoencoder,
    )

    factor = 2 ** (len(config.vae_config["block_out_channels"]) - 1)
    channels = config.vae_config["latent_channels"]
    sizes = {"double_z": True, "z_channels": channels, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32}
    sizes |= {"ch_mult": [1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    settings = {"params": {"ddconfig": sizes, "embed_dim": channels}}
    made = sd.VAE(sd=StockAutoencoder(**settings["params"]).state_dict(), config=settings)
    network = empty_vae(config.vae_config)
    use_layers(network, ops.disable_weight_init)
    fill(network, checkpoint, VAE_PREFIX, device=management.vae_offload_device(), dtype=made.vae_dtype)
    network.__class__ = Autoencoder
    stop_when_interrupted(network)
    made.first_stage_model = network
    made.patcher = patcher.ModelPatcher(
        network, load_device=made.device, offload_device=management.vae_offload_device()
    )
    made.latent_channels, made.downscale_ratio, made.upscale_ratio = channels, factor, factor
    made.size = None
    return made


_SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("in_features", "out_features"),
    nn.Conv2d: ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    nn.GroupNorm: ("num_groups", "num_channels", "eps", "affine"),
    nn.LayerNorm: ("normalized_shape", "eps", "elementwise_affine"),
}
"""Class of a layer -> its arguments, which are also its attributes; a bias apart."""


def use_layers(network: nn.Module, operations: Any) -> None:
    """Replace each Linear, Conv2d, GroupNorm and LayerNorm of a network on the meta device by a class of ComfyUI.

    With those a network can be loaded in part (`--lowvram`, `--novram`), and computed in another dtype than the one it
    is stored in (`--fp8_e4m3fn-unet`).

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
