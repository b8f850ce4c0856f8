"""A small random LBM that the workflow tests share."""

import pytest

from standins import Lbm, write_lbm


@pytest.fixture(scope="session")
def lbm(tmp_path_factory: pytest.TempPathFactory) -> Lbm:
    """Read only: tests write elsewhere."""
    return write_lbm(tmp_path_factory.mktemp("lbm"))
