"""The benchmark of other networks, on one of two layers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.fidelity import other_networks as module
from benchmarks.fidelity.networks import NETWORKS
from benchmarks.fidelity.other_networks import Comparison, main
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


def test_other_files_have_plains_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {name: [torch.rand(1, 3, 6, 6) for _ in range(3)] for name in ("calibration", "photos", "noise")}
    kinds = {"photos": "other photos", "noise": "noise"}
    network = replace(NETWORKS["cugan"], inputs=lambda count: made, kinds=kinds)
    monkeypatch.setattr(module, "pair", lambda network, work: fine_tune())
    monkeypatch.setattr(module, "NETWORKS", {"cugan": network})
    line = ["--only", "cugan", "--methods", "fp16", "int8", "--ranks", "2", "--inputs", "3"]
    assert main([*line, "--work", str(tmp_path / "work"), "--results", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("networks_*.json")
    found: dict[str, Any] = json.loads(path.read_text())["networks"]["cugan"]
    assert found["layers"] == 2
    assert found["kinds"] == kinds
    assert found["calibration"] == "3 inputs: crops of two photos as JPEG"
    sizes = {name: files["2"]["nbytes"] for name, files in found["sets"].items()}
    assert all(size <= sizes["plain"] for size in sizes.values())
    assert all(len(files["2"]["errors"]["noise"]) == 3 for files in found["sets"].values())
    assert len(found["base"]["photos"]) == 3


def test_an_unknown_network_is_named_with_the_known_ones() -> None:
    with pytest.raises(SystemExit, match=r"error: nothing: choose from chgnet, cugan, realsr\."):
        main(["--only", "nothing"])
