"""The two terms of the loss per sample: on the prediction in latent space, and on the decoded image.

A term is the mean over the unmasked elements of its sample, and a batch's loss is the mean over its samples. A sample
therefore has the same weight whatever the size of its mask (LBM itself divides by all elements), and processes with
equally many samples average to the gradient of one process that has them all.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lbm_lora.model import bridge
from lbm_lora.training.loss.objective import Objective

Images = Float[Tensor, "batch 3 height width"]
Mask = Float[Tensor, "batch planes mask_height mask_width"]
"""White (1) counts in the loss, black (0) does not; only the first plane is read."""
Window = tuple[slice, slice]
"""Rows and columns of a crop, in pixels."""
Lpips = Callable[[Tensor, Tensor], Tensor]
"""Map from two batches of images [batch, 3, height, width] in [-1, 1] to one distance per sample, with any number of
axes of length 1."""

_WHITE = 0.5
"""Value from which a mask pixel counts."""


def latent_loss(
    objective: Objective, prediction: bridge.Latent, velocity: bridge.Latent, mask: Mask | None = None
) -> Float[Tensor, " batch"]:
    """Return the distance of the network's prediction from its target, source - target (`bridge.velocity`).

    This is equation 4 of arXiv 2503.07535 in the noise-free form with which LBM's checkpoints are trained: it compares
    the prediction itself, not the target latent that follows from it by equation 6, so all timesteps have equal weight.

    Args:
        prediction: prediction of the network, any float dtype.
        velocity: source - target latents.
        mask: pixel mask. A latent pixel counts if all pixels under it do; a sample without any has loss 0.

    Returns:
        One fp32 value per sample.

    Raises:
        ValueError: the sides of the mask are not multiples of the latent's.
    """
    error = _errors(objective.latent_loss_type, prediction, velocity)
    return _mean(error, None if mask is None else latent_mask(mask, *error.shape[-2:]))


def pixel_loss(
    objective: Objective,
    decoded: Images,
    target_image: Images,
    mask: Mask | None,
    generators: Sequence[torch.Generator],
    lpips: Lpips | None = None,
) -> Float[Tensor, " batch"]:
    """Return the distance of the decoded prediction, clamped to [-1, 1], from the target image (equation 7).

    It is measured on a random crop of each sample, of at most `pixel_loss_max_size` on a side. Smaller images are not
    cropped, so latents and images may be cropped beforehand to reduce the decoder's work (`crop_windows`, `crop`).

    Args:
        decoded: decoded images, roughly in [-1, 1].
        target_image: target images in [-1, 1].
        mask: mask of the same pixels. LPIPS sees grey in both images where it is black.
        generators: CPU generators of the crops, one per sample.
        lpips: the network, for the type lpips.

    Returns:
        One fp32 value per sample.

    Raises:
        ValueError: the type is lpips but no network is given.
    """
    height, width = decoded.shape[-2:]
    windows = crop_windows(height, width, objective.pixel_loss_max_size, generators)
    made = crop(decoded, windows).float().clamp(-1, 1)
    wanted = crop(target_image, windows).float()
    valid = None if mask is None else crop(mask, windows)[:, :1] >= _WHITE
    if objective.pixel_loss_type != "lpips":
        return _mean(_errors(objective.pixel_loss_type, made, wanted), valid)
    if lpips is None:
        raise ValueError("pixel_loss_type lpips needs the LPIPS network")
    if valid is not None:
        made, wanted = made * valid, wanted * valid
    return lpips(made, wanted).float().reshape(len(made))


def crop_windows(
    height: int, width: int, size: int, generators: Sequence[torch.Generator], *, step: int = 1
) -> list[Window]:
    """Draw a random window per sample, `size` pixels on a side or the full side if it is shorter.

    Args:
        height: height of the images, in pixels.
        width: width of the images, in pixels.
        size: side of the window, in pixels; rounded down to a multiple of `step` if it crops.
        generators: CPU generators, one per sample.
        step: windows start and end at its multiples; use `pixels_per_latent` if latents are cropped too.
    """
    return [(_side(height, size, step, generator), _side(width, size, step, generator)) for generator in generators]


def crop(
    images: Float[Tensor, "batch channels height width"], windows: Sequence[Window], *, step: int = 1
) -> Float[Tensor, "batch channels rows columns"]:
    """Cut the windows of a batch, all of one size.

    Args:
        images: images or masks, or latents with `step` pixels per element.
        windows: one per sample, in pixels.
        step: pixels per element of `images`.
    """
    return torch.stack(
        [
            image[:, rows.start // step : rows.stop // step, columns.start // step : columns.stop // step]
            for image, (rows, columns) in zip(images, windows, strict=True)
        ]
    )


def latent_mask(mask: Mask, rows: int, columns: int) -> Bool[Tensor, "batch 1 rows columns"]:
    """Return the latent pixels that count: those without a black mask pixel, as in LBM's training.

    Raises:
        ValueError: the sides of the mask are not multiples of `rows` and `columns`.
    """
    height, width = mask.shape[-2:]
    if height % rows or width % columns:
        raise ValueError(f"a mask of {width}x{height} does not fit latents of {columns}x{rows}")
    black = (mask[:, :1] < _WHITE).float()
    return torch.nn.functional.max_pool2d(black, (height // rows, width // columns)) == 0


def _side(length: int, size: int, step: int, generator: torch.Generator) -> slice:
    if length <= size:
        return slice(0, length)
    room = length // step - size // step
    start = int(torch.randint(room + 1, (), generator=generator)) * step
    return slice(start, start + size // step * step)


def _errors(kind: str, made: Tensor, wanted: Tensor) -> Tensor:
    difference = made.float() - wanted.float()
    return difference.abs() if kind == "l1" else difference.square()


def _mean(errors: Tensor, valid: Tensor | None) -> Tensor:
    """Return the mean of each sample over its valid elements."""
    if valid is None:
        return errors.flatten(1).mean(1)
    total = errors.where(valid, 0.0).flatten(1).sum(1)
    return total / (valid.flatten(1).sum(1) * errors.shape[1]).clamp(min=1)
