"""How many samples that cannot be used are too many."""

import pytest

from lbm_lora.shards.corrupt import Skipped, complaint

TWO = [Skipped("a.tar/001", "no source.jpg"), Skipped("a.tar/002", "cannot be decoded")]


@pytest.mark.parametrize(("count", "total", "limit"), [(0, 0, 0.0), (0, 10, 0.0), (2, 40, 0.05), (2, 3, 1.0)])
def test_good_enough(count: int, total: int, limit: float) -> None:
    assert complaint("a.tar", TWO[:count], total, limit) == ""


@pytest.mark.parametrize(("total", "limit"), [(39, 0.05), (2, 1.0)])
def test_too_many_or_all(total: int, limit: float) -> None:
    assert complaint("a.tar", TWO, total, limit)


def test_it_says_how_many_and_which() -> None:
    assert complaint("a.tar", TWO, 10, 0.05) == (
        "a.tar: 2 of 10 samples cannot be used (20.0 %): a.tar/001 (no source.jpg), a.tar/002 (cannot be decoded), "
        "and max_corrupt is 5 %."
    )
