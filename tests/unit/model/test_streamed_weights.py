"""Weights that are in memory only while their module runs."""

from functools import partial

import torch
from torch import nn

from lbm_lora.adapter import LoraModule
from lbm_lora.model.streamed_weights import StreamedWeights
from lbm_lora.naming import ModuleName, ParamName


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


def test_factors_give_what_their_product_gives_until_other_values_are_put() -> None:
    torch.manual_seed(1)
    streamed = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.Flatten(), nn.Linear(16, 3)).bfloat16()
    values = {name: parameter.data.float() for name, parameter in streamed.named_parameters()}
    inputs, weights = torch.randn(5, 2, 4, 4), StreamedWeights(streamed.requires_grad_(requires_grad=False))
    before = streamed(inputs)
    modules = (
        LoraModule(ModuleName("0"), torch.randn(1, 2, 3, 3), torch.randn(4, 1, 1, 1), 3.0),
        LoraModule(ModuleName("2"), torch.randn(2, 16), torch.randn(3, 2), 1.0),
    )
    for module in modules:
        name = ParamName(f"{module.name}.weight")
        base = partial(values.__getitem__, name)
        weights.put(name, base, module)
        low_rank = streamed(inputs)
        weights.put(name, lambda one=module, base=base: base() + one.delta())
        torch.testing.assert_close(low_rank, streamed(inputs), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(low_rank, before, rtol=1e-2)
        weights.put(name, base)
        assert torch.equal(streamed(inputs), before)
