"""What the unit tests share: how hypothesis and torch run, seeded tensors, and files of them."""

import io
import os
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from safetensors.torch import save_file
from torch import Tensor

if TYPE_CHECKING:
    from hub_server import HubServer

settings.register_profile(
    "unit",
    derandomize=True,  # the same examples on every machine
    deadline=None,
    database=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("unit")

# the tensors are tiny: a second thread costs more than it gives, and much more on a busy machine
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture
def hub(tmp_path: Path) -> "Generator[HubServer]":
    """A stand-in for the Hugging Face hub, which the client uses while a test runs."""
    from hub_client import hub_of  # few tests need the client
    from hub_server import HubServer

    with HubServer() as server, hub_of(server, tmp_path / "hub"):
        yield server


@pytest.fixture
def rand() -> Callable[..., Tensor]:
    """`rand(2, 3)`: normal fp32 values, the next ones of one seeded stream."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[str, Mapping[str, Tensor]], Path]:
    """`save("base.safetensors", tensors)` or `save("base.ckpt", tensors)`: a file of the reference writers."""

    def write(name: str, tensors: Mapping[str, Tensor]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
        else:
            torch.save({"model_state_dict": dict(tensors)}, path)
        return path

    return write


@pytest.fixture
def png() -> Callable[..., bytes]:
    """`png(3, (64, 48))`: a PNG of seeded noise in (width, height)."""
    from PIL import Image

    def make(seed: int = 0, size: tuple[int, int] = (64, 64), kind: str = "PNG") -> bytes:
        values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(values).save(file, kind)
        return file.getvalue()

    return make


@pytest.fixture
def write_shard(tmp_path: Path) -> Callable[[str, Mapping[str, Mapping[str, bytes]]], Path]:
    """`write_shard("a.tar", {"000": {"source.png": ...}})` with WebDataset's own writer; returns the path."""
    from webdataset.writer import TarWriter

    def write(name: str, samples: Mapping[str, Mapping[str, bytes]]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with TarWriter(str(path), encoder=False, mtime=0) as tar:
            for key, parts in samples.items():
                tar.write({"__key__": key, **parts})
        return path

    return write
