"""Layers are exchanged with all their settings; a network looks for Cancel."""

from typing import Any

import pytest
import torch
from comfy_standin import Interrupted, State, layers
from torch import nn

from lbm_lora.comfy.network import stop_when_interrupted, use_layers


def network() -> Any:
    return nn.Sequential(
        nn.Conv2d(4, 8, (3, 1), stride=2, padding=(1, 0), dilation=1, groups=2, bias=False),
        nn.GroupNorm(2, 8, eps=1e-3),
        nn.ModuleDict({"inner": nn.ModuleList([nn.Linear(8, 6, bias=False), nn.LayerNorm(6, eps=1e-4)])}),
        nn.SiLU(),
    ).eval()


def test_every_layer_is_exchanged_and_keeps_its_settings_and_names() -> None:
    plain = network()
    with torch.device("meta"):
        made = network()
    use_layers(made, layers())
    assert [name for name, one in made.named_modules() if hasattr(one, "comfy_cast_weights")] == [
        "0", "1", "2.inner.0", "2.inner.1",
    ]  # fmt: skip
    assert str(made) == str(plain)
    assert {key: value.shape for key, value in made.state_dict().items()} == {
        key: value.shape for key, value in plain.state_dict().items()
    }
    assert not made[0].training
    made.load_state_dict(plain.state_dict(), assign=True)
    image = torch.rand(1, 4, 8, 8)
    assert torch.equal(made[1](made[0](image)), plain[1](plain[0](image)))


def test_a_network_stops_before_its_next_layer(comfy: State) -> None:
    made = network()
    stop_when_interrupted(made)
    made[0](torch.rand(1, 4, 8, 8))
    comfy.interrupted = True
    with pytest.raises(Interrupted):
        made[1](torch.rand(1, 8, 4, 4))
