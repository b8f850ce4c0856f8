"""Counts of each width are found again, and take about as many bits as they say."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lbm_lora.adapter.packed import decode_counts, encode_counts
from lbm_lora.adapter.packed_index import CODED_BITS
from lbm_lora.factorize import WIDTHS, largest, nearest


def draw(width: int, count: int, seed: int = 0) -> np.ndarray:
    most = largest(width)
    return np.random.default_rng(seed).integers(-most, most, count, endpoint=True).astype(np.int16)


@settings(max_examples=60, deadline=None)
@given(
    width=st.sampled_from(WIDTHS), counts=st.lists(st.integers(0, 9), min_size=1, max_size=3), seed=st.integers(0, 9)
)
def test_counts_are_found_again(width: int, counts: list[int], seed: int) -> None:
    parts = [draw(width, count, seed) for count in counts]
    found, rest = decode_counts(width, sum(counts), encode_counts(width, parts) + b"more")
    assert np.array_equal(found, np.concatenate(parts))
    assert rest == b"more"


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_of_a_normal_distribution_take_the_expected_bits(width: int) -> None:
    """Rows of 64 to 1280 values, as in the layers of LBM."""
    generator = torch.Generator().manual_seed(0)
    parts = [
        nearest(torch.randn(20, length, generator=generator), [width] * 20)[0].numpy()
        for length in (64, 320, 640, 1280)
    ]
    bits = 8 * len(encode_counts(width, parts)) / sum(part.size for part in parts)
    assert 0.93 * CODED_BITS[width] <= bits <= 1.03 * CODED_BITS[width]
