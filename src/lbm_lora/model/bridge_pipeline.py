# SPDX-License-Identifier: Apache-2.0
"""Latent Bridge Matching (arXiv 2503.07535v2) as a pipeline of diffusers: images in, translated images out.

This file stands alone. It needs torch, numpy, Pillow and diffusers; `save_pretrained` puts a copy of it into the folder
that it writes, so that `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` runs the model anywhere.

The bridge runs from sigma 1 (source) to 0 (target), and the timestep that the network sees is 1000 * sigma. Images are
stretched to the nearest of LBM's sizes, and results are stretched back.
"""

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from numbers import Integral
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Optional, cast

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageOps
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils import logging
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

logger = logging.get_logger(__name__)

_SOURCE = Path(__file__).read_text(encoding="utf-8")
_PROGRAM = "pipeline.py"
_WEIGHTS = re.compile(
    r"diffusion_pytorch_model(?:\.(?:safetensors|bin)\.index)?(\.[^.-]+)?(?:-\d{5}-of-\d{5})?\.(?:safetensors|bin|json)"
)
"""A file of weights, or the index of its shards, as diffusers names it: its group is the variant."""
_POSTERIOR = 0x705
"""Turns the seed of the bridge noise into the posterior's; torch uses 32 bits of a seed on the CPU."""

_TALL = ((896, 1152), (768, 1280), (640, 1536), (512, 1920), (512, 2048))
BUCKETS = ((1024, 1024), *_TALL, *((height, width) for width, height in _TALL))
"""(width, height) of the sizes that LBM works in, for a budget of 1024 x 1024 pixels."""

TILE = 128
"""Latents with a longer side are decoded in tiles of this size: 1024 pixels, the training size of SDXL."""
OVERLAP = 32
"""Smallest overlap of two neighbours, in latent pixels."""
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")

_LUMA = (0.2126, 0.7152, 0.0722)
_DETAIL = 1 / 100
"""Standard deviation of the blur that separates light from detail, as a share of the shorter side."""

Denoise = Callable[[Tensor, Tensor], Tensor]
"""Function of (latent [batch, channels, height, width], timestep [batch]) that returns a prediction of that shape."""
AfterStep = Callable[[int, Tensor, Tensor], "Tensor | None"]
"""(index, timestep, latent) -> the latent to continue with; None ends the walk."""
Generators = torch.Generator | Sequence[torch.Generator]
Image = PIL.Image.Image | Tensor
"""One image: PIL in mode `RGB`, or [3, height, width] with values in [0, 1]."""
_One = str | PathLike[str] | PIL.Image.Image | NDArray[Any] | Tensor
Given = _One | Sequence[_One]
"""What a caller may give as image or mask: a path, PIL, numpy or torch, or a list of them."""


class LatentBridgePipeline(DiffusionPipeline):
    """Pipeline that translates images along the latent bridge.

    Args:
        unet: predicts source - target from the image alone, without text.
        vae: encodes images to latents, and decodes them.
        scheduler: Euler steps of a flow with a shift of 1, as SDXL's scheduler configuration gives it.
        bridge_noise_sigma: scale of the noise that is added again between steps.
        trained_steps: the numbers of steps that stay on the trained timesteps; None if all were trained.
        base_fingerprint: content hash of the checkpoint that the weights came from. Not used here.

    Attributes:
        tiled: decode in overlapping tiles; None: if a side of the image is above 1024 pixels.
    """

    model_cpu_offload_seq = "vae->unet->vae"
    _callback_tensor_inputs = ("latents",)
    _elsewhere: ClassVar[Mapping[str, str]] = {}  # arguments of other pipelines -> what to do here

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: FlowMatchEulerDiscreteScheduler,
        bridge_noise_sigma: float = 0.005,
        trained_steps: Optional[list[int]] = None,  # noqa: UP045  diffusers before 0.37 reads no `list[int] | None`
        base_fingerprint: Optional[str] = None,  # noqa: UP045
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, vae=vae, scheduler=scheduler)
        self.register_to_config(
            bridge_noise_sigma=bridge_noise_sigma, trained_steps=trained_steps, base_fingerprint=base_fingerprint
        )
        self.tiled: bool | None = None
        self._interrupt = False

    @property
    def interrupt(self) -> bool:
        """Whether the running call ends after its present step: a callback sets `_interrupt`."""
        return self._interrupt

    @property
    def pixels_per_latent(self) -> int:
        """Image pixels per latent pixel, along a side: 8 for SDXL's VAE."""
        return pixels_per_latent(self.vae)

    @property
    def size(self) -> int:
        """Square root of the pixel budget that the model was made for: 1024 for the published LBM."""
        return model_size(self.unet, self.vae)

    def bucket(self, width: int, height: int, size: int | None = None) -> tuple[int, int]:
        """The (width, height) that an image is stretched to before it is translated."""
        return nearest_bucket(width, height, size or self.size, step=self.pixels_per_latent)

    def enable_vae_tiling(self) -> None:
        """Decode every image in overlapping tiles: less memory. By default only images above 1024 pixels a side are."""
        self.tiled = True

    def disable_vae_tiling(self) -> None:
        """Decode every image at once, whatever its size."""
        self.tiled = False

    def check_steps(self, steps: int) -> None:
        """Log a warning if a number of steps leaves the trained timesteps."""
        if steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {steps}.")
        trained = self.config["trained_steps"]
        if trained is not None and steps not in trained:
            logger.warning(f"{steps} steps leave the timesteps that the model was trained on. Trained: {trained}.")

    def check_finite(self, values: Tensor, what: str) -> None:
        """Refuse NaN and infinite values, which would silently turn black."""
        broken = int((~torch.isfinite(values)).sum())
        if broken:
            raise ValueError(f"{what} holds {broken} non-finite values of {values.numel()}. Try torch.bfloat16.")

    @torch.no_grad()
    def __call__(
        self,
        image: Given,
        mask: Given | None = None,
        num_inference_steps: int = 1,
        *,
        seed: int | None = None,
        generator: Generators | None = None,
        size: int | None = None,
        keep_detail: float = 0.0,
        match_color: float = 0.0,
        sample_posterior: bool = False,
        batch_size: int = 1,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Tensor] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **unknown: Any,
    ) -> ImagePipelineOutput | Any:
        """Translate images; every result has the size of its image.

        Args:
            image: PIL, numpy [(batch,) height, width, 3], a tensor [(batch,) 3, height, width], or a list of them, of
                any sizes. Floats lie in [0, 1].
            mask: likewise without channels; one for all images, or one for each. Where it is black, the image is kept.
            num_inference_steps: calls of the network for each image, at least 1.
            seed: for the noise between steps, and for the posterior where it is sampled; 0 or more, 0 by default. Each
                image is translated as if it were alone.
            generator: in place of a seed: one for each image, or one that gives each image a seed in turn.
            size: square root of the pixel budget that is worked on; by default the model's own.
            keep_detail: share of the image's fine detail in its result: 0 as the model makes it, 1 all of it.
            match_color: share by which the result's colours move to the mean and spread of the image's, 0 to 1.
            sample_posterior: sample the VAE's posterior instead of taking its mean.
            batch_size: neighbours of one shape that go through the networks together. The default, 1, makes results
                independent of the other images bit for bit.
            output_type: `pil`, `np` [batch, height, width, 3] or `pt` [batch, 3, height, width] in [0, 1], or `latent`.
            return_dict: return diffusers' `ImagePipelineOutput`, whose `images` they are; else a tuple of them.
            callback_on_step_end: called as (pipeline, step, timestep, tensors) after each step of each batch; returns
                the tensors to continue with, or None. Setting `pipeline._interrupt` ends the call with the finished
                images.
            callback_on_step_end_tensor_inputs: names of the tensors that the callback gets: `latents`.
        """
        for name in unknown:
            raise TypeError(f"{type(self).__name__} has no argument '{name}'. {self._elsewhere.get(name, '')}".rstrip())
        self._check(num_inference_steps, batch_size, output_type, callback_on_step_end_tensor_inputs)
        for name, share in (("keep_detail", keep_detail), ("match_color", match_color)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {share:g}.")
        if size is not None:
            _check_whole("size", size)
        draws_of = self._generators(seed, generator)
        images = list(images_of(image))
        if not images:
            raise ValueError("image is an empty list. Give at least one image.")
        masks = list(masks_of(mask, images))
        sizes = [_size_of(one) for one in images]
        buckets = [self.bucket(*one, size) for one in sizes]
        if output_type != "pil" and len(set(buckets if output_type == "latent" else sizes)) > 1:
            raise ValueError(
                f"images of several sizes make no single array: output_type='{output_type}' needs one size."
            )
        draws = draws_of(len(images))
        self._interrupt = False
        self._prepare()
        device = self._execution_device

        def after_step(index: int, timestep: Tensor, latents: Tensor) -> Tensor | None:
            if callback_on_step_end is not None:
                given = {"latents": latents} if "latents" in callback_on_step_end_tensor_inputs else {}
                latents = (callback_on_step_end(self, index, timestep, given) or {}).get("latents", latents)
            bar.update()
            return None if self._interrupt else latents

        targets: list[Tensor] = []
        batches = list(_batches(buckets, batch_size))
        progress_bar: Any = self.progress_bar
        with progress_bar(total=len(batches) * num_inference_steps) as bar:
            for batch in batches:
                values = torch.stack([_values(images[index], buckets[index]) for index in batch])
                posterior = [draws[index][0] for index in batch] if sample_posterior else None
                source = encode_images(self.vae, values, device=device, generators=posterior).to(self.unet.dtype)
                target = follow_bridge(
                    self._denoise,
                    source,
                    num_inference_steps,
                    self.config["bridge_noise_sigma"],
                    [draws[index][1] for index in batch],
                    scheduler=self.scheduler,
                    after_step=after_step,
                )
                targets += target if output_type == "latent" else self._decoded(target)
                if self._interrupt:
                    break
        self.maybe_free_model_hooks()
        results = _as_output(targets, images, masks, output_type, keep_detail, match_color)
        return ImagePipelineOutput(images=results) if return_dict else (results,)

    def _check(self, steps: int, batch_size: int, output_type: str, tensor_inputs: Sequence[str]) -> None:
        _check_whole("num_inference_steps", steps)
        self.check_steps(steps)
        _check_whole("batch_size", batch_size)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type must be pil, np, pt or latent, got '{output_type}'.")
        unknown = [name for name in tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(f"callback_on_step_end_tensor_inputs can name latents only, got {unknown}.")

    def _generators(
        self, seed: int | None, generator: Generators | None
    ) -> Callable[[int], list[tuple[torch.Generator, torch.Generator]]]:
        if generator is None:
            number = 0 if seed is None else seed
            _check_whole("seed", number)
            if not 0 <= number < 2**64:
                raise ValueError(f"seed must be between 0 and {2**64 - 1}, got {number}.")
            # With one seed for both, the posterior's noise would come again between the first two steps.
            return lambda count: [(_generator(number ^ _POSTERIOR), _generator(number)) for _ in range(count)]
        if seed is not None:
            raise ValueError("seed and generator both decide the noise. Give one of them.")
        given = cast(list[object], list(generator) if isinstance(generator, list | tuple) else [generator])
        if not all(isinstance(one, torch.Generator) for one in given):
            raise TypeError(
                f"generator must be a torch.Generator, or a list of them, got {generator!r}. A number is a seed=."
            )
        return lambda count: [(one, one) for one in one_per_sample(generator, count)]

    def _denoise(self, latents: Tensor, timestep: Tensor) -> Tensor:
        # Without text, attn2 attends to the image as attn1 does.
        return self.unet(latents, timestep, encoder_hidden_states=None).sample

    def _decoded(self, latents: Tensor) -> Iterator[Tensor]:
        """Images [3, height, width] in [-1, 1], fp32, on the CPU; decoded one by one, so that memory does not grow."""
        for latent in latents.split(1):
            values = decode_latents(self.vae, latent, tiled=self.tiled)
            self.check_finite(values, "the model's output")
            yield values[0].clamp(-1, 1).cpu()

    def _prepare(self) -> None:
        """Run the VAE in fp32 if its configuration says so: SDXL's overflows in fp16."""
        if self.vae.dtype == torch.float16 and self.vae.config.get("force_upcast", True):
            self.vae.to(dtype=torch.float32)

    def to_json_string(self) -> str:
        """The text of model_index.json: the class is the one in the file next to it."""
        index = json.loads(super().to_json_string()) | {"_class_name": ["pipeline", LatentBridgePipeline.__name__]}
        return json.dumps(index, indent=2, sort_keys=True) + "\n"

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write the model into a folder, with this file as pipeline.py; see diffusers.

        All files are complete before the first one gets its path. Weights that the folder held before are removed.
        """
        folder = Path(save_directory)
        self._check_folder(folder)
        kwargs.setdefault("repo_id", folder.resolve().name)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with TemporaryDirectory(prefix=".lbm-", suffix=".part", dir=folder) as made:
                super().save_pretrained(made, *args, **kwargs)
                _move_into(folder, Path(made))
        finally:
            with suppress(OSError):  # after an error it may be empty
                folder.rmdir()

    def save_config(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write model_index.json, and this file as pipeline.py; see diffusers."""
        folder = Path(save_directory)
        if not folder.name.endswith(".part"):  # of `save_pretrained`
            self._check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _PROGRAM).write_text(_SOURCE, encoding="utf-8")
        super().save_config(folder, push_to_hub=push_to_hub, **kwargs)

    def _check_folder(self, folder: Path) -> None:
        if folder.is_file():
            raise FileExistsError(f"{folder} is a file. Choose another folder.")
        for name, part in {"": self, **self.components}.items():
            home = getattr(part, "config", {}).get("_name_or_path")
            # a network has the folder of its model as its home if it was loaded from there with `subfolder`
            places = [place for place in (folder / name, folder) if place.exists()]
            if home and Path(home).exists() and any(place.samefile(home) for place in places):
                raise FileExistsError(
                    f"{folder} is the model that this pipeline was loaded from, and would be overwritten. Choose "
                    "another folder."
                )
        program = folder / _PROGRAM
        if program.is_file() and program.read_text(encoding="utf-8", errors="replace") == _SOURCE:
            return
        for name in (_PROGRAM, "model_index.json", *self.components):
            if (folder / name).exists():
                raise FileExistsError(f"{folder / name} exists, and is that of another model. Choose another folder.")


def _move_into(folder: Path, made: Path) -> None:
    files = {path.relative_to(made) for path in made.rglob("*") if path.is_file()}
    mode = (made / _PROGRAM).stat().st_mode
    for file in sorted(files):
        (made / file).chmod(mode)  # safetensors keeps others from reading its files, whatever the umask says
        (folder / file).parent.mkdir(exist_ok=True)
        if file.name != "README.md" or not (folder / file).exists():  # diffusers makes one for the hub
            (made / file).replace(folder / file)
    variants = {(file.parent, found[1]) for file in files if (found := _WEIGHTS.fullmatch(file.name))}
    for part, variant in variants:
        for path in (folder / part).iterdir():
            found = _WEIGHTS.fullmatch(path.name)
            if found and found[1] == variant and part / path.name not in files:
                path.unlink()


def _check_whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}.")


def pixels_per_latent(vae: AutoencoderKL) -> int:
    """Image pixels per latent pixel, along a side. Sides of images must be multiples of it."""
    return 2 ** (len(vae.config["block_out_channels"]) - 1)


def model_size(unet: UNet2DConditionModel, vae: AutoencoderKL) -> int:
    """Square root of the pixel budget that the networks were made for."""
    sample = unet.config["sample_size"] or 128
    rows, columns = (sample, sample) if isinstance(sample, int) else sample
    return round((rows * columns) ** 0.5) * pixels_per_latent(vae)


def nearest_bucket(width: int, height: int, size: int, *, step: int) -> tuple[int, int]:
    """The bucket nearest in width / height, for a budget of size x size pixels; sides are multiples of `step`."""
    if size < 64:
        raise ValueError(f"size must be at least 64, got {size}.")
    # Upstream measures the distance in width / height, so its choice is kept although it is not symmetric.
    bucket = min(BUCKETS, key=lambda sides: abs(sides[0] / sides[1] - width / height))
    wide, high = (max(step, round(side * size / 1024 / step) * step) for side in bucket)
    return wide, high


@torch.no_grad()
def encode_images(
    vae: AutoencoderKL, images: Tensor, *, device: torch.device, generators: Sequence[torch.Generator] | None = None
) -> Tensor:
    """fp32 latents of images in [-1, 1]: the posterior's mean, or a sample of it where generators are given.

    Encoding is never tiled, as in LBM.
    """
    posterior = cast(Any, vae.encode(images.to(device, vae.dtype))).latent_dist
    latents = posterior.mean.float()
    if generators is not None:
        latents = latents + posterior.std.float() * standard_normal(latents, generators)
    shift, scale = _shift_and_scale(vae)
    return (latents - shift) * scale


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, latents: Tensor, *, tiled: bool | None = None) -> Tensor:
    """Images of latents on the device of the VAE, fp32, about in [-1, 1] (not clamped).

    Args:
        tiled: decode in overlapping tiles; by default where a side of the latents is above 128.
    """

    def decode(part: Tensor) -> Tensor:
        return vae.decode(cast(Any, part), return_dict=False)[0].float()

    shift, scale = _shift_and_scale(vae)
    latents = (latents.float() / scale + shift).to(vae.dtype)
    if max(latents.shape[-2:]) > TILE if tiled is None else tiled:
        return decode_tiled(decode, latents, factor=pixels_per_latent(vae)).to(latents.device)
    return decode(latents)


@torch.no_grad()
def follow_bridge(
    denoise: Denoise,
    source_latent: Tensor,
    steps: int,
    bridge_noise_sigma: float,
    generator: Generators,
    *,
    scheduler: FlowMatchEulerDiscreteScheduler | None = None,
    after_step: AfterStep | None = None,
) -> Tensor:
    """Walk from source latents [batch, channels, height, width] to target latents by `steps` Euler steps, in fp32.

    After every step but the last, noise of the bridge at the new sigma is added again. The noise of a sample depends
    on its own generator alone: not on its neighbours in the batch, nor on the device or dtype.

    Args:
        denoise: gets latents in the dtype of `source_latent` and timesteps in fp32, one per sample.
        steps: denoiser calls, at least 1.
        generator: one per sample; or one, which gives each sample of the batch a seed in turn.
        scheduler: by default one with a shift of 1.
        after_step: called after each step.

    Returns:
        Latents in the dtype of `source_latent`.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    walk: Any = scheduler or FlowMatchEulerDiscreteScheduler()
    walk.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps).tolist())
    generators = one_per_sample(generator, len(source_latent))
    latent = source_latent.float()
    for index, timestep in enumerate(walk.timesteps):
        at = timestep.expand(len(latent)).to(latent.device)
        prediction = denoise(latent.to(source_latent.dtype), at).float()
        latent = walk.step(prediction, timestep, latent, return_dict=False)[0]
        after = float(walk.sigmas[index + 1])
        if after > 0:
            latent = latent + bridge_noise_sigma * (after * (1 - after)) ** 0.5 * standard_normal(latent, generators)
        go_on = latent if after_step is None else after_step(index, timestep, latent)
        if go_on is None:
            break
        latent = go_on
    return latent.to(source_latent.dtype)


def one_per_sample(generator: Generators, count: int) -> list[torch.Generator]:
    """Generators for a batch: those given, or one for each sample, seeded in turn by the one given.

    Sample i of a batch gets the same generator whatever the size of the batch.
    """
    if isinstance(generator, torch.Generator):
        # 32 bits: the CPU generator ignores what a seed has above them.
        draws = [torch.randint(2**32, (), generator=generator, device=generator.device) for _ in range(count)]
        return [_generator(int(seed)) for seed in draws]
    if len(generator) != count:
        raise ValueError(f"{len(generator)} generators for a batch of {count}: give one, or one per sample")
    return list(generator)


def standard_normal(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """fp32 noise of the shape and on the device of `like`, each sample from its own generator, on that one's device."""
    rows = [torch.randn(like.shape[1:], generator=draw, device=draw.device).to(like.device) for draw in generators]
    return torch.stack(rows)


def decode_tiled(
    decode: Callable[[Tensor], Tensor], latents: Tensor, *, factor: int, tile: int = TILE, overlap: int = OVERLAP
) -> Tensor:
    """Decode [batch, channels, height, width] latents tile by tile; the image is gathered on the CPU in fp32.

    All tiles have the full size and are evenly spaced, the last ones at the edges: a thin strip would be decoded with
    its own norm statistics. Overlaps are blended linearly.

    Args:
        decode: maps latents of at most `tile` per side to images `factor` times as large.
        factor: image pixels per latent pixel.
        tile, overlap: sizes in latent pixels; `overlap` is below `tile`.
    """
    height, width = latents.shape[-2:]
    image, weight = torch.zeros(0), torch.zeros(1, 1, height * factor, width * factor)
    for top in tile_starts(height, tile, overlap):
        for left in tile_starts(width, tile, overlap):
            piece = decode(latents[..., top : top + tile, left : left + tile]).float().cpu()
            if not image.numel():
                image = piece.new_zeros(*piece.shape[:2], height * factor, width * factor)
            rows, columns = piece.shape[-2:]
            window = _ramp(rows, overlap * factor)[:, None] * _ramp(columns, overlap * factor)
            y, x = top * factor, left * factor
            image[..., y : y + rows, x : x + columns] += piece * window
            weight[..., y : y + rows, x : x + columns] += window
    return image / weight


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Return where tiles start along a side: evenly spaced, the fewest that overlap by at least `overlap`."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(index * (length - tile) / (count - 1)) for index in range(count)]


def images_of(image: Any) -> Iterator[Image]:
    """Yield the images that a caller gives, in order; paths are opened."""
    if isinstance(image, list | tuple):
        for one in image:
            yield from images_of(one)
    elif isinstance(image, str | PathLike):
        yield in_srgb(_opened(cast("str | PathLike[str]", image)))
    elif isinstance(image, PIL.Image.Image):
        yield in_srgb(PIL.ImageOps.exif_transpose(image))
    elif isinstance(image, np.ndarray | Tensor):
        if image.ndim not in (3, 4) or image.shape[-3 if isinstance(image, Tensor) else -1] != 3:
            raise ValueError(
                f"an image is an array [height, width, 3] or a tensor [3, height, width], got {tuple(image.shape)}."
            )
        values = image if isinstance(image, Tensor) else torch.from_numpy(np.array(image)).movedim(-1, -3)
        if values.dtype == torch.uint8:
            for one in values.reshape(-1, *values.shape[-3:]).cpu():
                yield PIL.Image.fromarray(one.permute(1, 2, 0).contiguous().numpy())
        else:
            low, high = float(values.min()), float(values.max())
            if not 0 <= low <= high <= 1:
                raise ValueError(f"values from {low:g} to {high:g}: floats of an image must lie between 0 and 1.")
            yield from values.reshape(-1, *values.shape[-3:]).float().cpu()
    else:
        raise TypeError(
            f"image must be a path, PIL image, numpy array or tensor, or a list of them, got {type(image).__name__}."
        )


def masks_of(mask: Any, images: Sequence[Image]) -> Iterator[PIL.Image.Image | None]:
    """Yield a mask for each image, in mode `L` and of its size, or None."""
    masks = list(_greys(mask))
    if len(masks) not in (1, len(images)):
        raise ValueError(f"{len(masks)} masks for {len(images)} images: give one for all, or one for each.")
    for one in masks:
        brightest = 255 if one is None else int(cast(Any, one.getextrema())[1])
        if brightest < 1:
            raise ValueError("a mask is black everywhere, so nothing would change. White marks the pixels to take.")
    for image, one in zip(images, masks if len(masks) == len(images) else masks * len(images), strict=True):
        width, height = _size_of(image)
        if one is not None and abs(one.width * height / (one.height * width) - 1) > 0.01 + 1 / min(
            *one.size, width, height
        ):
            raise ValueError(f"a mask of {one.width}x{one.height} for an image of {width}x{height}: the shapes differ.")
        yield (
            one
            if one is None or one.size == (width, height)
            else one.resize((width, height), PIL.Image.Resampling.BILINEAR)
        )


def _greys(mask: Any) -> Iterator[PIL.Image.Image | None]:
    if isinstance(mask, list | tuple):
        for one in mask:
            yield from _greys(one)
    elif isinstance(mask, str | PathLike):
        yield in_grey(_opened(cast("str | PathLike[str]", mask)))
    elif mask is None or isinstance(mask, PIL.Image.Image):
        yield None if mask is None else in_grey(PIL.ImageOps.exif_transpose(mask))
    elif isinstance(mask, np.ndarray | Tensor):
        values = (mask if isinstance(mask, Tensor) else torch.from_numpy(np.array(mask))).squeeze().cpu()
        if values.ndim not in (2, 3):
            raise ValueError(f"a mask is an array [height, width], got {tuple(mask.shape)}.")
        grey = values if values.dtype == torch.uint8 else (values.float().clamp(0, 1) * 255).round().to(torch.uint8)
        for one in grey.reshape(-1, *grey.shape[-2:]):
            yield PIL.Image.fromarray(one.numpy())
    else:
        raise TypeError(
            f"mask must be a path, PIL image, numpy array or tensor, or a list of them, got {type(mask).__name__}."
        )


def _opened(path: str | PathLike[str]) -> PIL.Image.Image:
    """Read an image file, upright. Only formats that Pillow decodes itself: others may run programs."""
    with PIL.Image.open(Path(path).expanduser(), formats=_FORMATS) as image:
        return PIL.ImageOps.exif_transpose(image)


def in_srgb(image: PIL.Image.Image, complain: Callable[[Exception], object] = lambda _: None) -> PIL.Image.Image:
    """An image in 8 bits of sRGB, mode `RGB`, on white where it is transparent.

    Args:
        complain: told of a colour profile that cannot be used; the colours are taken as sRGB.
    """
    profile = image.info.get("icc_profile")
    image = in_8_bits(image)
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        image = PIL.Image.new("RGB", image.size, "white")
        image.paste(layered, mask=layered.getchannel("A"))
    if profile:
        direct = image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB")
        try:
            source, target = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile)), PIL.ImageCms.createProfile("sRGB")
            if "sRGB" not in PIL.ImageCms.getProfileDescription(source):
                image = PIL.ImageCms.profileToProfile(direct, source, target, outputMode="RGB") or image
        except (PIL.ImageCms.PyCMSError, OSError) as error:
            complain(error)
    return image.convert("RGB")


def in_grey(mask: PIL.Image.Image) -> PIL.Image.Image:
    """A mask in mode `L`: its alpha channel where that says something, else its brightness."""
    mask = in_8_bits(mask)
    if mask.has_transparency_data:
        alpha = mask.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            return alpha
        mask = mask.convert("RGB")
    return mask.convert("L")


def in_8_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """An image whose pixels of 16 bits are rounded to 8; any other stays."""
    if not image.mode.startswith("I"):  # 16 bits, which Pillow reads as 32 in some versions
        return image
    return PIL.Image.fromarray(np.round(np.asarray(image) / 257).clip(0, 255).astype(np.uint8))


def _size_of(image: Image) -> tuple[int, int]:
    return image.size if isinstance(image, PIL.Image.Image) else (image.shape[-1], image.shape[-2])


def _values(image: Image, bucket: tuple[int, int]) -> Tensor:
    """An image stretched to a bucket: [3, height, width] in [-1, 1]."""
    if isinstance(image, Tensor):
        return _stretched(image, bucket) * 2 - 1
    array = np.array(_resized(image, bucket), dtype=np.float32)
    return torch.from_numpy(array).permute(2, 0, 1).contiguous() / 127.5 - 1


def _as_output(
    targets: Sequence[Tensor],
    images: Sequence[Image],
    masks: Sequence[PIL.Image.Image | None],
    kind: str,
    keep_detail: float,
    match_color: float,
) -> Any:
    """Return the results in the sizes of the images, pasted onto them inside the masks. Latents stay as they are."""
    if kind == "latent":
        return torch.stack(list(targets))

    def adjusted(result: Tensor, image: Image) -> Tensor:
        return adjust_to_source(result, _unit(image), keep_detail=keep_detail, match_color=match_color)

    made = zip(targets, images, masks, strict=False)  # an interrupted call has made fewer
    if kind == "pil":
        results: list[PIL.Image.Image] = []
        for target, image, mask in made:
            result = _resized(_to_pil(target), _size_of(image))
            if keep_detail or match_color:
                result = _to_pil(adjusted(_unit(result), image) * 2 - 1)
            if mask is not None:
                source = image if isinstance(image, PIL.Image.Image) else _to_pil(image * 2 - 1)
                result = PIL.Image.composite(result, source, mask)
            results.append(result)
        return results
    stretched: list[Tensor] = []
    for target, image, mask in made:
        result = adjusted(_stretched((target + 1) / 2, _size_of(image)), image)
        if mask is not None:
            result = _unit(image).lerp(result, torch.from_numpy(np.array(mask, dtype=np.float32)) / 255)
        stretched.append(result)
    values = torch.stack(stretched)
    return values if kind == "pt" else values.permute(0, 2, 3, 1).numpy()


def adjust_to_source(result: Tensor, source: Tensor, *, keep_detail: float = 0.0, match_color: float = 0.0) -> Tensor:
    """A result with detail and colours of its source; both [3, height, width] in [0, 1].

    Detail is what differs from the local mean of the brightness. It is exchanged first, then the mean and the standard
    deviation of each channel.

    Args:
        keep_detail: 0 leaves the result's detail, 1 puts the source's in its place.
        match_color: 0 leaves the result's colours, 1 gives them the mean and the standard deviation of the source's.
    """
    if keep_detail:
        radius = max(1.0, _DETAIL * min(source.shape[-2:]))
        light, light_before = _luma(result), _luma(source)
        detail = (light_before - _blurred(light_before, radius)) - (light - _blurred(light, radius))
        result = (result + keep_detail * detail).clamp(0, 1)
    if match_color:
        mean, spread = result.mean((-2, -1), keepdim=True), result.std((-2, -1), keepdim=True)
        mean_before, spread_before = source.mean((-2, -1), keepdim=True), source.std((-2, -1), keepdim=True)
        matched = (result - mean) * (spread_before / spread.clamp(min=1e-6)) + mean_before
        result = torch.lerp(result, matched, match_color).clamp(0, 1)
    return result


def _luma(values: Tensor) -> Tensor:
    weights = torch.tensor(_LUMA, dtype=values.dtype, device=values.device)
    return (weights[:, None, None] * values).sum(0, keepdim=True)


def _blurred(plane: Tensor, radius: float) -> Tensor:
    """A plane [1, height, width] blurred by a Gaussian, with its edges repeated."""
    reach = min(round(3 * radius), *(side - 1 for side in plane.shape[-2:]))
    places = torch.arange(-reach, reach + 1, dtype=plane.dtype, device=plane.device)
    kernel = torch.exp(-0.5 * (places / radius) ** 2)
    kernel = kernel / kernel.sum()
    padded = functional.pad(plane[None], (reach, reach, reach, reach), mode="replicate")
    rows = functional.conv2d(padded, kernel[None, None, None, :])
    return functional.conv2d(rows, kernel[None, None, :, None])[0]


def _unit(image: Image) -> Tensor:
    return image if isinstance(image, Tensor) else (_values(image, image.size) + 1) / 2


def _to_pil(values: Tensor) -> PIL.Image.Image:
    return PIL.Image.fromarray(((values.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy())


def _resized(image: PIL.Image.Image, size: tuple[int, int]) -> PIL.Image.Image:
    return image if image.size == size else image.resize(size, PIL.Image.Resampling.LANCZOS)


def _stretched(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Values in [0, 1] stretched to (width, height), without a detour over 8 bits."""
    width, height = size
    if values.shape[-2:] == (height, width):
        return values
    stretched = functional.interpolate(values[None], (height, width), mode="bicubic", antialias=True)
    return stretched[0].clamp(0, 1)


def _batches(buckets: Sequence[tuple[int, int]], batch_size: int) -> Iterator[list[int]]:
    for _, group in groupby(range(len(buckets)), key=lambda index: buckets[index]):
        indices = list(group)
        yield from (indices[start : start + batch_size] for start in range(0, len(indices), batch_size))


def _ramp(length: int, overlap: int) -> Tensor:
    """Return weights along a side: rising over the overlap, 1 inside, then falling; never 0."""
    distance = torch.arange(1, length + 1, dtype=torch.float32)
    rising = torch.minimum(distance, distance.flip(0)) / (overlap + 1)
    return rising.clamp(max=1.0)


def _shift_and_scale(vae: AutoencoderKL) -> tuple[float, float]:
    return vae.config.get("shift_factor") or 0.0, vae.config["scaling_factor"]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
