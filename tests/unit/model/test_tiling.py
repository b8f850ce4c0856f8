"""Tiles cover a side evenly, and blending them gives back what was decoded."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lbm_lora.model.tiling import decode_tiled, needs_tiles, tile_starts


def upsample(latents: Tensor) -> Tensor:
    """A decoder that looks at one latent pixel only: tiles must not show."""
    return latents[:, :3].repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)


@pytest.mark.parametrize(
    ("length", "starts"),
    [(5, [0]), (8, [0]), (9, [0, 1]), (14, [0, 6]), (15, [0, 4, 7]), (20, [0, 6, 12]), (26, [0, 6, 12, 18])],
)
def test_starts_of_tiles_of_8_that_overlap_by_2(length: int, starts: list[int]) -> None:
    assert tile_starts(length, 8, 2) == starts


@pytest.mark.parametrize("length", range(9, 60))
def test_tiles_cover_the_side_and_overlap_enough(length: int) -> None:
    starts = tile_starts(length, 8, 2)
    assert starts[0] == 0
    assert starts[-1] + 8 == length
    assert all(0 < after - before <= 6 for before, after in pairwise(starts))


@pytest.mark.parametrize(("height", "width"), [(20, 31), (8, 20), (5, 9), (4, 4)])
def test_a_local_decoder_shows_no_tiles(height: int, width: int) -> None:
    latents = torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(0))
    image = decode_tiled(upsample, latents, factor=2, tile=8, overlap=2)
    torch.testing.assert_close(image, upsample(latents), rtol=0, atol=1e-6)


def test_a_decoder_never_sees_more_than_a_tile() -> None:
    seen: set[tuple[int, int]] = set()

    def decode(latents: Tensor) -> Tensor:
        seen.add((latents.shape[-2], latents.shape[-1]))
        return upsample(latents)

    decode_tiled(decode, torch.zeros(1, 4, 20, 5), factor=2, tile=8, overlap=2)
    assert seen == {(8, 5)}


def test_seams_are_blended_linearly() -> None:
    """Two tiles, 0 and 1, over 14 columns with 2 in common: a ramp between them, no step."""
    counter = iter([0.0, 1.0])
    image = decode_tiled(
        lambda z: torch.full_like(upsample(z), next(counter)), torch.zeros(1, 4, 1, 14), factor=2, tile=8, overlap=2
    )
    row = image[0, 0, 0]
    assert row[:12].eq(0).all()
    assert row[16:].eq(1).all()
    torch.testing.assert_close(row[12:16], torch.tensor([0.2, 0.4, 0.6, 0.8]))


def test_only_large_latents_need_tiles() -> None:
    assert not needs_tiles(torch.zeros(1, 4, 128, 128))
    assert needs_tiles(torch.zeros(1, 4, 8, 129))
