"""Inputs in which nothing is wrong, and a process that forks: made once for all tests that need them."""

from collections.abc import Iterator

import pytest
from faults.goods import Goods, write_goods
from faults.harness import Worker


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    """A process that has run nothing itself, so that its forks have no threads to miss."""
    found = Worker()
    yield found
    found.close()


@pytest.fixture(scope="session")
def goods(tmp_path_factory: pytest.TempPathFactory) -> Goods:
    """Read only."""
    other = Worker()
    try:
        return write_goods(tmp_path_factory.mktemp("goods") / "in", other)
    finally:
        other.close()
