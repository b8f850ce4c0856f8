"""The benchmark of other networks, on one of two layers."""

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.fidelity.other_networks import Comparison
from lbm_lora import extract


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1)).eval()


def fine_tune() -> tuple[nn.Module, nn.Module]:
    base, tuned = network(0), network(0)
    with torch.no_grad():
        for weight in tuned.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return base, tuned


def test_a_complete_lora_leaves_no_error_and_the_base_as_it_was(tmp_path: Path) -> None:
    base, tuned = fine_tune()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    images = {"noise": [torch.rand(1, 3, 5, 5) for _ in range(2)]}
    comparison = Comparison(base, tuned, images)
    path = tmp_path / "lora.safetensors"
    extract(base.state_dict(), tuned.state_dict(), rank=99, save_precision="float", save_to=path)
    (found,) = comparison.errors(path).values()
    assert len(found) == 2
    assert max(found) < -90
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    with torch.no_grad():
        image = images["noise"][0]
        error = (base(image) - tuned(image)).norm() / tuned(image).norm()
    assert comparison.errors(None)["noise"][0] == pytest.approx(20 * error.log10().item(), abs=1e-3)
