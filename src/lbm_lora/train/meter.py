"""The mean loss of the last forward passes, and the time that one takes."""

import time
from collections.abc import Generator
from contextlib import contextmanager

from torch import Tensor


class Meter:
    """Sums losses on their device: nothing waits for them until they are read."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._passes = 0
        self._since = 0.0

    def start(self) -> None:
        """Forget all, and let time run from now on."""
        self._sum, self._passes, self._since = None, 0, time.monotonic()

    def add(self, loss: Tensor) -> None:
        """One forward pass is done."""
        self._sum = loss if self._sum is None else self._sum + loss
        self._passes += 1

    @contextmanager
    def paused(self) -> Generator[None]:
        """Time that does not count."""
        before = time.monotonic()
        yield
        self._since += time.monotonic() - before

    def read(self) -> tuple[Tensor, float]:
        """(mean loss, seconds of a forward pass with all that belongs to it) since the last reading; starts anew."""
        if self._sum is None:
            raise AssertionError("nothing was measured")
        loss, seconds = self._sum / self._passes, (time.monotonic() - self._since) / self._passes
        self.start()
        return loss, seconds
