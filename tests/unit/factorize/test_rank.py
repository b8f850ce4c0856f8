"""How much rank a matrix gets."""

import pytest

from lbm_lora.errors import InputError
from lbm_lora.factorize import FixedRank


@pytest.mark.parametrize(
    ("shape", "rank"),
    [((64, 64), 32), ((8, 64), 8), ((64, 64, 3, 3), 16), ((4, 320, 3, 3), 4), ((320, 1, 3, 3), 9), ((64, 3, 1, 1), 3)],
)
def test_the_documented_ranks(shape: tuple[int, ...], rank: int) -> None:
    assert FixedRank().rank_of(shape) == rank


@pytest.mark.parametrize("rank", [0, -1, -9999])
def test_a_rank_below_one_is_refused(rank: int) -> None:
    with pytest.raises(InputError) as caught:
        FixedRank(linear=rank)
    text = "To leave layers out: exclude."
    assert str(caught.value) == f"rank must be at least 1, got {rank}. {text}"
    with pytest.raises(InputError) as caught:
        FixedRank(conv=rank)
    assert str(caught.value) == f"conv_rank must be at least 1, got {rank}. {text}"


@pytest.mark.parametrize(
    ("linear", "conv", "expected"),
    [(32, None, 16), (16, None, 8), (3, None, 2), (1, None, 1), (9999, None, 9999), (16, 16, 16), (9999, 4, 4)],
)
def test_a_conv_rank_is_half_of_the_rank_unless_it_is_given(linear: int, conv: int | None, expected: int) -> None:
    assert FixedRank.of(linear, conv) == FixedRank(linear=linear, conv=expected)
