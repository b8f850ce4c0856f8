"""The sums against brute force: inputs gathered by hand, whole Jacobians, and true changes of the output."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lbm_lora.calibration import CalibrationSettings, Origin, Sums, find_layers
from lbm_lora.calibration.hooks import measure
from lbm_lora.factorize import Moment, to_matrix
from lbm_lora.naming import ModuleName, ParamName

LINEARS = ["query", "key", "value", "out"]


class Block(nn.Module):
    """Self-attention over positions and a linear layer after it."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(6, 6, bias=name == "out") for name in LINEARS)

    def forward(self, tokens: Tensor) -> Tensor:
        weights = (self.query(tokens) @ self.key(tokens).mT).softmax(dim=-1)
        return tokens + self.out(torch.tanh(weights @ self.value(tokens)))


class Net(nn.Module):
    """The kinds of layers that an LBM has: strided conv, time embedding, attention, conv."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, stride=2, padding=1)
        self.time_1, self.time_2 = nn.Linear(3, 5), nn.Linear(5, 6)
        self.block = Block()
        self.last = nn.Conv2d(6, 2, 3, padding=1)
        self.gain = nn.Parameter(torch.rand(6) + 1)  # used twice
        self.is_checkpointed = False

    def forward(self, image: Tensor, time: Tensor) -> Tensor:
        hidden = torch.tanh(self.stem(image)) + self.time_2(torch.sin(self.time_1(time)))[:, :, None, None]
        tokens = hidden.flatten(2).mT * self.gain
        block: Callable[[Tensor], Tensor] = self.block
        tokens = checkpoint(block, tokens, use_reentrant=False) if self.is_checkpointed else block(tokens)
        return self.last((tokens * self.gain).mT.reshape(hidden.shape))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double().requires_grad_(False)


def samples(count: int) -> list[tuple[Tensor, Tensor]]:
    """Images of a common mean with some noise, and times."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    return [(draw(1, 2, 8, 8) + 0.5, draw(1, 3)) for _ in range(count)]


def origin(dense_up_to: int, conv_dense_up_to: int = 0) -> Origin:
    settings = CalibrationSettings(dense_up_to=dense_up_to, sketch_rank=8, conv_dense_up_to=conv_dense_up_to)
    return settings.origin(tuned="", count=1, dtype=torch.float64)


def collected(net: Net, inputs: list[tuple[Tensor, Tensor]], probes: int | None = None) -> Sums:
    """The sums over samples; without a number of probes, a set of them that gives expectations exactly."""
    layers = find_layers(net, lambda: net(*inputs[0]))
    sums = Sums.empty(layers, net, origin(64), torch.device("cpu"))
    values = net(*inputs[0]).numel()
    generator = torch.Generator().manual_seed(2)
    for sample in inputs:
        rows = torch.eye(values) * values**0.5  # the mean of v v^T over them is the identity
        if probes is not None:
            rows = torch.randint(0, 2, (probes, values), generator=generator) * 2.0 - 1
        shaped = [row.reshape for row in rows]
        measure(net, layers, lambda sample=sample: net(*sample), shaped, 1 / len(inputs), sums)
    return sums


def module_of(net: Net, name: str) -> nn.Linear | nn.Conv2d:
    return dict(net.named_modules())[name]  # pyright: ignore[reportReturnType]


def rows_of(values: Tensor) -> Tensor:
    """(tokens, features) of what stands at a layer's side."""
    return values.movedim(1, -1).reshape(-1, values.shape[1]) if values.dim() == 4 else values.flatten(0, -2)


def gathered(net: Net, name: str, sample: tuple[Tensor, Tensor]) -> Tensor:
    """The input rows of a layer."""
    seen: list[Tensor] = []
    handle = module_of(net, name).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net(*sample)
    handle.remove()
    return rows_of(seen[0])


def change(net: Net, name: str, error: Tensor, inputs: list[tuple[Tensor, Tensor]]) -> float:
    """The mean squared change of the output that an error in a layer's weight causes."""
    weight = module_of(net, name).weight
    before = [net(*sample) for sample in inputs]
    kept = weight.data
    weight.data = kept + error.reshape(kept.shape)
    after = [net(*sample) for sample in inputs]
    weight.data = kept
    pairs = zip(before, after, strict=True)
    return sum(float((one - other).square().sum()) for one, other in pairs) / len(inputs)


@pytest.mark.parametrize("name", ["block.key", "stem", "time_1"])
def test_inputs_are_those_gathered_by_hand(net: Net, name: ModuleName) -> None:
    inputs = samples(3)
    sums = collected(net, inputs, probes=1)
    rows = [gathered(net, name, sample) for sample in inputs]
    expected = sum((part.mT @ part / len(part) for part in rows), torch.zeros(())) / len(inputs)
    shared = ModuleName("block.query") if name in ("block.key", "block.value") else name
    dense = sums.inputs[shared].result(1).dense
    assert dense is not None
    assert torch.allclose(dense.double(), expected, rtol=1e-4, atol=1e-6)
    assert (name in sums.inputs) == (shared == name)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 3, (3, 2), stride=(2, 1), padding=(2, 0), dilation=(1, 2), bias=False),
        nn.Conv2d(4, 3, (2, 3), dilation=2, padding="same", bias=False),
        nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect", bias=False),
    ],
    ids=str,
)
def test_a_conv_has_a_moment_of_all_that_its_kernel_covers(conv: nn.Conv2d) -> None:
    """It then gives the mean squared output of any kernel exactly."""
    net, inputs = nn.Sequential(conv), torch.randn(2, 4, 90, 70, generator=torch.Generator().manual_seed(0))
    layers = find_layers(net, lambda: net(inputs))
    sums = Sums.empty(layers, net, origin(4, conv_dense_up_to=36), torch.device("cpu"))
    output = net(inputs).detach()
    measure(net, layers, lambda: net(inputs), [torch.ones], 0.5, sums)
    moment = sums.inputs[ModuleName("0")].result(0.5)
    assert (moment.size, moment.repeat) == (conv.weight[0].numel(), 1)
    expected = float(output.square().sum()) / output[:, 0].numel()
    assert moment.quadratic(conv.weight.detach().flatten(1)) == pytest.approx(expected, rel=1e-5)


def predicted(sums: Sums, net: Net, name: ModuleName, error: Tensor) -> tuple[float, float]:
    """tr(G E C E^T), and the same with the scale of what token positions have in common."""
    shared = ModuleName("block.query") if name in ("block.key", "block.value") else name
    weight = module_of(net, name).weight
    inputs = replace(sums.inputs[shared].result(1), repeat=weight[0, 0].numel())
    outputs = sums.outputs[name].result(1)
    trace = _trace(outputs, inputs, error)
    return trace, trace * sums.gradients[name] / (inputs.trace * outputs.trace)


def _trace(outputs: Moment, inputs: Moment, error: Tensor) -> float:
    values, vectors = torch.linalg.eigh(outputs.dense.double())  # pyright: ignore[reportOptionalMemberAccess]
    return inputs.quadratic((vectors * values.clamp(min=0).sqrt()).mT @ error)


def errors(net: Net, name: ModuleName, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = to_matrix(module_of(net, name).weight).shape
    return [1e-4 * torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("name", ["block.value", "stem", "time_1"])
def test_the_trace_predicts_the_change_of_the_output(net: Net, name: ModuleName) -> None:
    """With the scale, the mean over random errors within 20 %, and each of them within a factor of 8."""
    inputs = samples(4)
    sums = collected(net, inputs)
    found = [(change(net, name, error, inputs), *predicted(sums, net, name, error)) for error in errors(net, name, 40)]
    true, plain, scaled = (torch.tensor(column) for column in zip(*found, strict=True))
    assert float(scaled.mean()) == pytest.approx(float(true.mean()), rel=0.2)
    assert float((true / scaled).log2().abs().max()) < 3
    # attention averages the values of all positions: what they have in common adds up, and only the scale knows it
    ratio = float(true.mean() / plain.mean())
    assert 4 < ratio < 8 if name == "block.value" else 1 / 4 < ratio < 4


@pytest.mark.parametrize("name", ["stem.bias", "gain"])
def test_a_vectors_moment_predicts_the_change_of_the_output(net: Net, name: ParamName) -> None:
    inputs = samples(3)
    dense = collected(net, inputs).vectors[name].result(1).dense
    assert dense is not None
    vector = net.get_parameter(name)
    error = 1e-5 * torch.randn(vector.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    before = [net(*sample) for sample in inputs]
    vector.add_(error)
    changes = [float((net(*sample) - old).square().sum()) for sample, old in zip(inputs, before, strict=True)]
    assert float(error @ dense.double() @ error) == pytest.approx(sum(changes) / len(inputs), rel=1e-3)


def test_a_checkpointed_block_counts_once(net: Net) -> None:
    inputs = samples(2)
    plain = collected(net, inputs, probes=2)
    net.is_checkpointed = True
    again = collected(net, inputs, probes=2)
    assert plain.gradients == pytest.approx(again.gradients, rel=1e-12)
    for one, other in zip(plain.state().values(), again.state().values(), strict=True):
        assert torch.allclose(one, other, rtol=1e-6)


def test_all_calls_of_a_layer_count_together() -> None:
    """Of one position, so that the trace is exact: an error in the layer acts in both calls at once."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 3).double().requires_grad_(False)
    vector = torch.randn(1, 3, dtype=torch.float64)

    def forward() -> Tensor:
        return layer(torch.tanh(layer(vector)))

    layers = find_layers(layer, forward)
    sums = Sums.empty(layers, layer, origin(8), torch.device("cpu"))
    measure(layer, layers, forward, [row.reshape for row in torch.eye(3) * 3**0.5], 1.0, sums)
    weight = layer.weight.requires_grad_(True)
    exact = 0.0
    for index in range(3):
        exact += float(torch.autograd.grad(forward()[0, index], weight)[0].square().sum())
    (name,) = layers
    assert sums.gradients[name] == pytest.approx(exact, rel=1e-6)
    inputs = torch.cat([vector, torch.tanh(layer(vector))]).detach()
    dense = sums.inputs[name].result(1).dense
    assert dense is not None
    assert torch.allclose(dense.double(), inputs.mT @ inputs / 2, rtol=1e-5)
