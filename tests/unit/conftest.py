"""What the unit tests share: how hypothesis and torch run, seeded tensors, and files of them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from safetensors.torch import save_file
from torch import Tensor

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
torch.set_num_threads(1)


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
