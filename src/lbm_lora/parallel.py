"""Parallel work on tensors: one thread per tensor, results in order.

A network has many matrices of moderate size. Two threads on two matrices are faster than two threads on one, and
results do not depend on the number of threads, since a single thread computes each tensor.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from lbm_lora.threads import worker_count

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 8


def ordered_map(
    work: Callable[[Item], Result], items: Iterable[Item], *, threads: int | None = None
) -> Iterator[Result]:
    """Map over a few threads: results come in the order of the items, and only a bounded number run ahead.

    Args:
        work: called with one item, in a thread where torch itself uses one thread. Its errors propagate to the caller.
        threads: by default as many as the program may use; see `lbm_lora.threads`.
    """
    count = threads or worker_count()
    before = torch.get_num_threads()
    waiting: deque[Future[Result]] = deque()
    torch.set_num_threads(1)  # new threads inherit this
    try:
        with ThreadPoolExecutor(count, thread_name_prefix="lbm-lora") as pool:
            try:
                for item in items:
                    waiting.append(pool.submit(work, item))
                    if len(waiting) >= _AHEAD * count:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()
    finally:
        torch.set_num_threads(before)
