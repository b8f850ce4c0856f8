"""What the unit tests share: how hypothesis runs, seeded tensors, a small network, and files of both."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from safetensors.torch import save_file
from torch import Tensor, nn

settings.register_profile(
    "unit",
    derandomize=True,  # the same examples on every machine
    deadline=None,
    database=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("unit")

torch.set_num_threads(1)  # the tensors are tiny: a second thread costs more than it gives, and much more on a busy machine


@pytest.fixture
def rand() -> Callable[..., Tensor]:
    """`rand(2, 3)`: normal fp32 values, the next ones of one seeded stream."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator)


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


class SmallNet(nn.Module):
    """A network that is no LBM: strided conv, batch norm with its counter, 1x1 conv, group norm, two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.point = nn.Conv2d(8, 6, 1)
        self.norm = nn.GroupNorm(2, 6)
        self.head = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 5, bias=False))

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.bn1(self.stem(images)))
        return self.head(self.norm(self.point(hidden)).mean((2, 3)))


@pytest.fixture
def small_net() -> Callable[[int], SmallNet]:
    """`small_net(seed)`: the network in eval mode, every tensor of it random, its counter equal to the seed."""

    def build(seed: int) -> SmallNet:
        net = SmallNet().eval()
        generator = torch.Generator().manual_seed(seed)
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.25)
            else:
                tensor.fill_(seed)
        return net

    return build
