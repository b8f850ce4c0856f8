"""What makes a sample a pair; its whole way from files to an index is in test_index.py."""

from pathlib import Path

import pytest

from lbm_lora.shards.samples import Found, Part, Skipped
from lbm_lora.training.data.pairs import Keys, record_of, same_shape


def test_a_damaged_sample_is_no_pair_whatever_its_parts() -> None:
    parts = {name: Part(Path("nowhere"), 0, 1) for name in ("source.jpg", "target.jpg")}
    assert record_of(Found("a", parts, "the shard ends within source.jpg"), Keys()) == Skipped(
        "a", "the shard ends within source.jpg"
    )


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ((640, 480), (320, 240), True),
        ((641, 480), (320, 240), True),
        ((640, 480), (480, 640), False),
        ((640, 480), (640, 460), False),
    ],
)
def test_shapes_are_the_same_but_for_rounding(one: tuple[int, int], other: tuple[int, int], same: bool) -> None:
    assert same_shape(one, other) is same
    assert same_shape(other, one) is same
