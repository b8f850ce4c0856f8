"""Weights that are in memory only while their module runs."""

import torch
from torch import nn

from lbm_lora.model.streamed_weights import StreamedWeights
from lbm_lora.naming import ParamName


def network() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(4, 8), nn.GroupNorm(2, 8), nn.Linear(8, 3)).bfloat16()
    made.requires_grad_(requires_grad=False)
    return made


def test_outputs_are_those_of_the_network_in_fp32() -> None:
    inputs, streamed = torch.randn(5, 4), network()
    StreamedWeights(streamed)
    assert torch.equal(streamed(inputs), network().float()(inputs))


def test_weights_are_in_memory_only_while_their_module_runs() -> None:
    streamed = network()
    shapes = StreamedWeights(streamed).shapes
    sizes: list[int] = []
    streamed[1].register_forward_hook(lambda *_: sizes.append(sum(p.numel() for p in streamed.parameters())))
    streamed(torch.randn(5, 4))
    assert sizes == [0]
    assert sum(parameter.numel() for parameter in streamed.parameters()) == 0
    assert shapes[ParamName("0.weight")] == (8, 4)
    assert all(parameter.dtype == torch.float32 for parameter in streamed.parameters())


def test_other_values_count_from_the_next_run() -> None:
    inputs, streamed, expected = torch.randn(5, 4), network(), network().float()
    weights = StreamedWeights(streamed)
    before = streamed(inputs)
    weights.put(ParamName("2.bias"), lambda: torch.ones(3))
    expected[2].bias.data = torch.ones(3)
    assert not torch.equal(streamed(inputs), before)
    assert torch.equal(streamed(inputs), expected(inputs))
