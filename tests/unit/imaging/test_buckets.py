"""LBM's eleven sizes, scaled to the model, and the nearest of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbm_lora.errors import ConfigError
from lbm_lora.imaging.buckets import nearest_bucket, warn_of_size
from lbm_lora.model.bridge_pipeline import BUCKETS
from lbm_lora.progress import LbmLoraWarning


def test_the_buckets_are_those_of_lbm() -> None:
    wide = {(1152, 896), (1280, 768), (1536, 640), (1920, 512), (2048, 512)}
    assert len(BUCKETS) == 11
    assert set(BUCKETS) == {(1024, 1024)} | wide | {(height, width) for width, height in wide}
    assert all(side % 64 == 0 for bucket in BUCKETS for side in bucket)


@pytest.mark.parametrize(
    ("image", "bucket"),
    [
        ((4000, 3000), (1152, 896)),
        ((3000, 4000), (896, 1152)),
        ((1920, 1080), (1280, 768)),
        ((1080, 1920), (768, 1280)),
        ((10, 1000), (512, 2048)),
        ((1000, 10), (2048, 512)),
        ((513, 512), (1024, 1024)),
        ((1135, 1000), (1024, 1024)),  # nearer to 1152x896 by the ratio of the aspects
    ],
)
def test_the_nearest_in_width_over_height(image: tuple[int, int], bucket: tuple[int, int]) -> None:
    assert nearest_bucket(*image) == bucket


@given(width=st.integers(1, 5000), height=st.integers(1, 5000), size=st.integers(64, 2048))
def test_every_size_can_be_encoded(width: int, height: int, size: int) -> None:
    bucket = nearest_bucket(width, height, size)
    assert all(side % 8 == 0 and side >= 32 for side in bucket)
    assert 0.75 * size**2 <= bucket[0] * bucket[1] <= 1.25 * size**2


def test_a_size_without_room_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"size 32 is too small for the buckets\. Use 64 or more\."):
        nearest_bucket(10, 10, 32)


@pytest.mark.parametrize("size", [64, 255, 2049])
def test_sizes_far_from_the_models_are_said_with_both_numbers(size: int) -> None:
    with pytest.warns(LbmLoraWarning) as said:
        warn_of_size(size, 1024)
    assert str(said[0].message) == (
        f"size {size} is far from the 1024 that the model is made for, and images may degrade. Omit it, or "
        "stay between 256 and 2048."
    )
