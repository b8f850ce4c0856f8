"""Translate the images of a ComfyUI batch with a MODEL and a VAE, along the latent bridge.

Sampling runs inside ComfyUI's own guider and sampler, so that patches, hooks, model management, preview and Cancel work
as for any other model. The walk itself, sizes and noise are those of `lbm-lora infer`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lbm_lora.comfy.network import LoadedLBM, loaded_lbm
from lbm_lora.errors import ConfigError, ImageError
from lbm_lora.imaging.tensors import stretched
from lbm_lora.model.bridge_pipeline import adjust_to_source, decode_tiled, follow_bridge, nearest_bucket
from lbm_lora.model.pipeline import check_finite
from lbm_lora.model.schedule import check_steps

Photo = Float[Tensor, "3 height width"]
Mask = Float[Tensor, "rows columns"]

_TILE = 128  # latents with a longer side are decoded in tiles, as by `infer`


@dataclass(frozen=True)
class TranslateOptions:
    """Options of the node.

    Attributes:
        steps: denoiser calls for each image.
        seed: seed for the noise between steps; each image is translated as if it were alone.
        keep_detail, match_color: see `adjust_to_source`; 0 changes nothing.
        size: square root of the pixel budget; 0: the model's own.
    """

    steps: int = 1
    seed: int = 0
    keep_detail: float = 0.0
    match_color: float = 0.0
    size: int = 0


def translate(
    model: Any,
    vae: Any,
    images: Float[Tensor, "batch height width channels"],
    options: TranslateOptions,
    *,
    mask: Float[Tensor, "masks rows columns"] | None = None,
    background: Float[Tensor, "backgrounds tall wide channels"] | None = None,
) -> Float[Tensor, "batch height width 3"]:
    """Translate every image of a batch. Results have the size of their images.

    Args:
        images: values in [0, 1]; an alpha channel is ignored.
        mask: one for all images, or one for each. White takes the result, black keeps the image.
        background: likewise. The image is first put onto it where the mask is white, and black then keeps the
            background.

    Raises:
        ConfigError: the MODEL is not an LBM, the size is below 64, or a background comes without a mask.
        ImageError: numbers of images do not fit together, or a result is not finite.
    """
    loaded = loaded_lbm(model)
    check_steps(loaded.config, options.steps)
    if background is not None and mask is None:
        raise ConfigError("a background needs a mask: white marks what of the image is put onto it.")
    photos = [image[..., :3].movedim(-1, 0).float().cpu() for image in images]
    masks = _each(mask, len(photos), "mask")
    backgrounds = _each(background, len(photos), "background")
    walk = _Walk(model, vae, loaded, options, total=len(photos) * options.steps)
    results = [walk.result(*one) for one in zip(photos, masks, backgrounds, strict=True)]
    return torch.stack(results).movedim(1, -1)


def _each(values: Tensor | None, count: int, what: str) -> list[Tensor | None]:
    """Return a value for each image, where there is one for all or one for each."""
    if values is None:
        return [None] * count
    if len(values) not in (1, count):
        raise ImageError(f"{what}: {len(values)} for {count} images. Give one for all, or one for each.")
    return [values[index if len(values) > 1 else 0].float().cpu() for index in range(count)]


class _Walk:
    """The bridge of one node's run, one image after the other, so that memory does not grow with the batch."""

    def __init__(self, model: Any, vae: Any, loaded: LoadedLBM, options: TranslateOptions, *, total: int) -> None:
        import latent_preview  # pyright: ignore[reportMissingImports]

        self._model, self._vae, self._loaded, self._options = model, vae, loaded, options
        self._preview: Callable[..., None] = latent_preview.prepare_callback(model, total)
        self._total, self._done = total, 0

    def result(self, photo: Photo, mask: Mask | None, background: Tensor | None) -> Photo:
        """Return the translation of one image, in its size."""
        height, width = photo.shape[-2:]
        white = None if mask is None else _fitted(mask, (width, height))
        kept = photo
        if background is not None and white is not None:
            kept = stretched(background[..., :3].movedim(-1, 0), (width, height))
            photo = torch.lerp(kept, photo, white)
        options, step = self._options, self._loaded.pixels_per_latent
        try:
            bucket = nearest_bucket(width, height, options.size or self._loaded.size, step=step)
        except ValueError:
            raise ConfigError(f"size must be 0 or at least 64, got {options.size}.") from None
        latent = self._vae.encode(stretched(photo, bucket).movedim(0, -1)[None])
        values = self._decoded(self._bridged(latent))
        check_finite(values, self._model.model_dtype(), what="the model's output")
        result = stretched(values, (width, height))
        result = adjust_to_source(result, photo, keep_detail=options.keep_detail, match_color=options.match_color)
        return result if white is None else torch.lerp(kept, result, white)

    def _bridged(self, source: Tensor) -> Tensor:
        """Return the target latent of a source latent, by ComfyUI's guider with our own sampler in it."""
        from comfy.samplers import KSAMPLER, CFGGuider  # pyright: ignore[reportMissingImports]

        guider = CFGGuider(self._model)
        guider.inner_set_conds({"positive": [[None, {}]]})
        guider.set_cfg(1.0)
        sigmas = torch.linspace(1.0, 0.0, self._options.steps + 1)
        start = self._model.model.process_latent_in(source)
        return guider.sample(start, torch.zeros_like(start), KSAMPLER(self._sample), sigmas, disable_pbar=True)

    def _sample(self, denoised_by: Any, start: Tensor, sigmas: Tensor, *, extra_args: Any, **_: Any) -> Tensor:
        """A sampler function of ComfyUI: follow the bridge from the source that it starts with."""
        guess = start

        def denoise(latents: Tensor, timestep: Tensor) -> Tensor:
            nonlocal guess
            sigma = timestep / 1000
            guess = denoised_by(latents, sigma, **extra_args)
            return (latents - guess) / sigma[:, None, None, None]

        def after_step(_: int, __: Tensor, latents: Tensor) -> Tensor:
            self._preview(self._done, guess, latents, self._total)
            self._done += 1
            return latents

        noise = self._loaded.config.bridge_noise_sigma
        draws = [torch.Generator().manual_seed(self._options.seed) for _ in start]
        return follow_bridge(denoise, start.float(), len(sigmas) - 1, noise, draws, after_step=after_step)

    def _decoded(self, latent: Tensor) -> Photo:
        """Return the image of a latent, in [0, 1]; in tiles above 1024 pixels a side."""

        def decode(part: Tensor) -> Tensor:
            return self._vae.decode(part).movedim(-1, 1).float().cpu()

        if max(latent.shape[-2:]) > _TILE:
            return decode_tiled(decode, latent, factor=self._loaded.pixels_per_latent)[0].clamp(0, 1)
        return decode(latent)[0]


def _fitted(mask: Mask, size: tuple[int, int]) -> Float[Tensor, "height width"]:
    """Return a mask in an image's size (width, height).

    Raises:
        ImageError: it has another shape, or is black everywhere.
    """
    (rows, columns), short = mask.shape, min(*mask.shape, *size)
    if float(mask.max()) < 1 / 255:
        raise ImageError("mask is black everywhere, so nothing would change. White marks what to take.")
    if abs(columns * size[1] / (rows * size[0]) - 1) > 0.01 + 1 / short:
        raise ImageError(f"mask is {columns}x{rows}, but its image {size[0]}x{size[1]}: the shapes differ.")
    return stretched(mask[None], size)[0]
