"""Decode a large latent in overlapping tiles, so that memory does not grow with the image.

All tiles have the full size and lie evenly, the last ones at the edges: a thin rest strip would be decoded
with norm statistics of its own. Where tiles overlap, they are blended linearly.
"""

from collections.abc import Callable

import torch
from torch import Tensor

TILE = 128
"""Latents with a side above this are decoded in tiles of this size: 1024 pixels, the size SDXL was trained at."""
OVERLAP = 32
"""The least overlap of two neighbours, in latent pixels."""


def needs_tiles(latents: Tensor, *, tile: int = TILE) -> bool:
    """Whether a side of the latents is larger than a tile."""
    return max(latents.shape[-2:]) > tile


def decode_tiled(
    decode: Callable[[Tensor], Tensor],
    latents: Tensor,
    *,
    factor: int,
    tile: int = TILE,
    overlap: int = OVERLAP,
) -> Tensor:
    """Decode [batch, channels, height, width] latents tile by tile; the image is gathered on the CPU in fp32.

    Args:
        decode: latents of at most `tile` a side -> images `factor` times as large.
        factor: image pixels per latent pixel.
        tile, overlap: in latent pixels; `overlap` is below `tile`.
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
    """Where tiles begin along a side: evenly spread, the fewest that overlap by at least `overlap`."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(index * (length - tile) / (count - 1)) for index in range(count)]


def _ramp(length: int, overlap: int) -> Tensor:
    """Weights along a side: rising over the overlap, 1 inside, falling again; never 0."""
    distance = torch.arange(1, length + 1, dtype=torch.float32)
    rising = torch.minimum(distance, distance.flip(0)) / (overlap + 1)
    return rising.clamp(max=1.0)
