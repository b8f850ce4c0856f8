"""An LBM ready to run, built from a checkpoint.

The networks are made on the meta device and take over the checkpoint's tensors: nothing is initialised at
random, and there is no second copy in memory. On the CPU, in the dtype of the file, the weights stay a view
of the file.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor

from lbm_lora.checkpoint import Checkpoint, CheckpointLike
from lbm_lora.errors import ConfigError, ImageError
from lbm_lora.hub import open_checkpoint
from lbm_lora.model.bridge_pipeline import (
    Generators,
    decode_latents,
    encode_images,
    model_size,
    one_per_sample,
    pixels_per_latent,
)
from lbm_lora.model.config import LBMConfig
from lbm_lora.model.constants import VAE_PREFIX
from lbm_lora.model.device import resolve_device
from lbm_lora.model.names import check_shapes, checkpoint_shapes, empty_unet, empty_vae
from lbm_lora.model.resolve import resolve_config
from lbm_lora.model.streamed_weights import LARGE, StreamedWeights
from lbm_lora.naming import DENOISER_PREFIX
from lbm_lora.runtime import fit_threads

Images = Float[Tensor, "batch 3 height width"]
Latents = Float[Tensor, "batch channels rows columns"]


@dataclass(frozen=True, kw_only=True, eq=False)
class LBMModel:
    """Networks of an LBM, with all that they need to translate an image.

    Attributes:
        dtype: dtype of the denoiser and of all latents.
        vae_dtype: dtype of the VAE. It is fp32 if `dtype` is fp16 and the VAE's config says `force_upcast`:
            SDXL's VAE overflows in fp16 and gives NaN.
        streamed: weights of the denoiser, if they are in memory only while their module runs.
    """

    denoiser: UNet2DConditionModel = field(repr=False)
    vae: AutoencoderKL = field(repr=False)
    config: LBMConfig
    device: torch.device
    dtype: torch.dtype
    vae_dtype: torch.dtype
    streamed: StreamedWeights | None = field(default=None, repr=False)

    @property
    def pixels_per_latent(self) -> int:
        """Image pixels per latent pixel, along a side: 8 for SDXL's VAE. Sides of images must be multiples of it."""
        return pixels_per_latent(self.vae)

    @property
    def size(self) -> int:
        """Square root of the pixel budget that the model was made for: 1024 for the published LBM."""
        return model_size(self.denoiser, self.vae)

    def encode(self, images: Images, *, generator: Generators | None = None) -> Latents:
        """Latents of images in [-1, 1]: the mean of the VAE's posterior, or a sample of it where a generator is given.

        Encoding is never tiled, as in LBM.
        """
        height, width = images.shape[-2:]
        if height % self.pixels_per_latent or width % self.pixels_per_latent:
            raise ImageError(f"images of {width}x{height}: both sides must be multiples of {self.pixels_per_latent}.")
        draws = None if generator is None else one_per_sample(generator, len(images))
        return encode_images(self.vae, images, device=self.device, generators=draws).to(self.dtype)

    def decode(self, latents: Latents, *, tiled: bool | None = None) -> Images:
        """Images of latents, fp32, about in [-1, 1] (not clamped), on this model's device.

        Args:
            tiled: decode in overlapping tiles; by default where a side of the latents is above 128.
        """
        return decode_latents(self.vae, latents.to(self.device), tiled=tiled)

    def denoise(self, latents: Latents, timestep: Float[Tensor, " batch"]) -> Latents:
        """The network's prediction of source - target. It takes no text: attn2 attends to the image, as attn1 does."""
        output = self.denoiser(
            latents.to(self.device, self.dtype), timestep.to(self.device), encoder_hidden_states=None
        )
        return output.sample


def load_model(
    checkpoint: CheckpointLike,
    *,
    config_path: Path | str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    is_streamed: bool = False,
) -> LBMModel:
    """Build the LBM of a checkpoint, ready for inference (no gradients, evaluation mode).

    Args:
        checkpoint: anything that `open_checkpoint` takes. Tensors of it may become the model's own; none is changed.
        config_path: a config.yaml for a checkpoint that has none of its own.
        device: `cuda` where there is no CUDA gives a warning, and the CPU.
        dtype: of the denoiser; tensors of another dtype are cast one by one.
        is_streamed: keep the weights of a large denoiser on the CPU in the file, and make them fp32 one module at a
            time; `dtype` must be fp32. It takes a fraction of the memory, and a second or two for each run.
    """
    with open_checkpoint(checkpoint) as opened:
        config = resolve_config(opened, config_path=Path(config_path) if config_path else None)
        refuse_conditioning(config, where=opened.path)
        check_shapes(opened.specs, checkpoint_shapes(config), where=opened.path)
        target = resolve_device(device) if isinstance(device, str) else device
        vae_dtype = torch.float32 if dtype == torch.float16 and config.vae_config.get("force_upcast", True) else dtype
        denoiser, vae = empty_unet(config.unet_config), empty_vae(config.vae_config)
        fit_threads(sum(p.numel() for network in (denoiser, vae) for p in network.parameters()))
        is_streamed = is_streamed and target.type == "cpu" and sum(p.numel() for p in denoiser.parameters()) >= LARGE
        fill(denoiser, opened, DENOISER_PREFIX, device=target, dtype=None if is_streamed else dtype)
        streamed = StreamedWeights(denoiser) if is_streamed else None
        fill(vae, opened, VAE_PREFIX, device=target, dtype=vae_dtype)
    return LBMModel(
        denoiser=denoiser,
        vae=vae,
        config=config,
        device=target,
        dtype=dtype,
        vae_dtype=vae_dtype,
        streamed=streamed,
    )


def fill(
    network: torch.nn.Module, checkpoint: Checkpoint, prefix: str, *, device: torch.device, dtype: torch.dtype | None
) -> None:
    """Give a network on the meta device the checkpoint's tensors under `prefix`, strictly, in the file's order.

    Args:
        dtype: None: that of the file.
    """
    names = [key.removeprefix(prefix) for key in checkpoint.specs if key.startswith(prefix)]
    state = {name: checkpoint.read(prefix + name).to(device=device, dtype=dtype) for name in names}
    network.load_state_dict(state, strict=True, assign=True)
    network.requires_grad_(requires_grad=False).eval()


def refuse_conditioning(config: LBMConfig, *, where: object) -> None:
    """Refuse a denoiser that takes more than the latent."""
    extra = config.unet_input_channels - config.vae_num_channels
    if extra or config.conditioning_images_keys or config.conditioning_masks_keys:
        keys = ", ".join((*config.conditioning_images_keys, *config.conditioning_masks_keys)) or "no keys given"
        raise ConfigError(
            f"{where}: its denoiser takes {config.unet_input_channels} channels, {config.vae_num_channels} of the "
            f"latent and {extra} of conditioning images ({keys}). Running such a model is not supported; base, extract "
            "and fuse work on it."
        )
