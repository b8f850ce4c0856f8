"""The two terms of the loss, per sample: on the prediction in latent space, and on the decoded image.

A term is the mean over the elements of its sample that the mask leaves, and a batch's loss is the mean over its
samples. So a sample weighs the same whatever the size of its mask (LBM itself divides by all elements), and
processes with equally many samples each get, on average, the gradient of one process that has them all.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lbm_lora.model import bridge
from lbm_lora.training.loss.objective import Objective

Images = Float[Tensor, "batch 3 height width"]
Mask = Float[Tensor, "batch planes mask_height mask_width"]
"""White, 1, counts in the loss and black, 0, does not; its first plane is read."""
Window = tuple[slice, slice]
"""Rows and columns of a crop, pixels."""
Lpips = Callable[[Tensor, Tensor], Tensor]
"""(images [batch, 3, height, width] in [-1, 1], images) -> one distance per sample, with any number of axes of 1."""

_WHITE = 0.5
"""From here on a pixel of a mask counts."""


def latent_loss(
    objective: Objective, prediction: bridge.Latent, velocity: bridge.Latent, mask: Mask | None = None
) -> Float[Tensor, " batch"]:
    """The distance of the network's prediction from what it should be, source - target (`bridge.velocity`).

    It is equation 4 of arXiv 2503.07535 in the noise-free form that LBM's checkpoints are trained with: the
    prediction itself is compared, not the target latent that follows from it by equation 6, so no timestep weighs
    more than another.

    Args:
        prediction: of the network, any float dtype.
        velocity: source - target latents.
        mask: of the pixels. A latent pixel counts where all pixels under it do; a sample without any has loss 0.

    Returns:
        One fp32 value per sample.

    Raises:
        ValueError: the sides of the mask are no multiples of the latent's.
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
    """The distance of the decoded prediction, clamped to [-1, 1], from the target image (equation 7).

    It is measured on a random crop of each sample, of at most `pixel_loss_max_size` on a side. What is already as
    small is not cropped; so the decoder's work can be saved too, by cropping latents and images beforehand
    (`crop_windows`, `crop`).

    Args:
        decoded: about in [-1, 1].
        target_image: in [-1, 1].
        mask: of the same pixels. LPIPS sees grey in both images where it is black.
        generators: CPU generators of the crops, one per sample.
        lpips: the network, for the type lpips.

    Returns:
        One fp32 value per sample.

    Raises:
        ValueError: the type is lpips and there is no network.
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
    """A random window per sample, `size` pixels on a side or the side itself where it is not longer.

    Args:
        height: of the images, pixels.
        width: of the images, pixels.
        size: of the window, pixels; rounded down to a multiple of `step` where it crops.
        generators: CPU generators, one per sample.
        step: windows start and end at its multiples; `pixels_per_latent` where latents are cropped too.
    """
    return [(_side(height, size, step, generator), _side(width, size, step, generator)) for generator in generators]


def crop(
    images: Float[Tensor, "batch channels height width"], windows: Sequence[Window], *, step: int = 1
) -> Float[Tensor, "batch channels rows columns"]:
    """The windows of a batch, all of one size.

    Args:
        images: images or masks, or latents with `step` pixels to one of theirs.
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
    """The latent pixels that count: those under which no pixel of the mask is black, as in LBM's training.

    Raises:
        ValueError: the sides of the mask are no multiples of `rows` and `columns`.
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
    """The mean of each sample, over its valid elements."""
    if valid is None:
        return errors.flatten(1).mean(1)
    total = errors.where(valid, 0.0).flatten(1).sum(1)
    return total / (valid.flatten(1).sum(1) * errors.shape[1]).clamp(min=1)
