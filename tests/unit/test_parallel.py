"""Tensors in parallel: order, bounded look-ahead, errors, and torch's threads."""

import threading

import pytest
import torch

from lbm_lora.parallel import ordered_map


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(threads: int) -> None:
    turns = [threading.Event() for _ in range(6)]
    turns[0].set()

    def work(item: int) -> int:
        # with several threads the later item of each pair finishes first
        if threads > 1 and item % 2 == 0 and item + 1 < 6:
            turns[item + 1].wait(0.05)
        turns[item].set()
        return item * item

    assert list(ordered_map(work, range(6), threads=threads)) == [0, 1, 4, 9, 16, 25]


def test_only_a_few_results_are_ahead_of_the_reader() -> None:
    begun: list[int] = []
    results = ordered_map(begun.append, range(100), threads=2)
    next(results)
    assert len(begun) <= 16, "eight for each thread"
    results.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert len(begun) <= 16


def test_an_error_reaches_the_reader_and_ends_the_work() -> None:
    done: list[int] = []

    def work(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        done.append(item)
        return item

    with pytest.raises(ValueError, match=r"^three$"):
        list(ordered_map(work, range(1000), threads=2))
    assert len(done) < 20


def test_torch_uses_one_thread_inside_and_as_many_as_before_outside() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert set(ordered_map(lambda _: torch.get_num_threads(), range(8), threads=2)) == {1}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
