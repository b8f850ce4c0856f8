"""A backbone and a tuned LBM, written once for the tests of the model package."""

from pathlib import Path

import pytest
import torch

from standins import TINY, write_backbone, write_tuned


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TINY backbone in SDXL's diffusers layout, fp32."""
    return write_backbone(tmp_path_factory.mktemp("model") / "backbone", TINY)


@pytest.fixture(scope="session")
def tuned_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TINY tuned LBM, bf16, with its config.yaml beside it."""
    return write_tuned(tmp_path_factory.mktemp("tuned"), TINY)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
