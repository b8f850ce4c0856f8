"""A network with other weights: outputs compared, and its own weights put back."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from lbm_lora.fidelity.network import Network, Run, component_of, kept_weights, network_errors, outputs_of
from lbm_lora.fidelity.network_trial import NetworkTrial, check_outputs, network_checks
from lbm_lora.fidelity.output_errors import relative_error
from lbm_lora.naming import ParamName
from lbm_lora.progress import SILENT
from lbm_lora.verbs.extract import extract


def net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(4)
    nn.init.constant_(norm.running_mean, seed)  # pyright: ignore[reportArgumentType]
    return nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.Conv2d(4, 3, 1)).eval()


def runner(module: nn.Module, count: int = 3) -> Run:
    draw = torch.Generator().manual_seed(0)
    data = [torch.randn(1, 2, 5 + index, 6, generator=draw) for index in range(count)]

    def run() -> Iterator[Tensor]:
        for images in data:
            yield module(images)

    return run


def test_errors_are_those_of_fused_weights_and_the_network_is_left_as_it_was() -> None:
    base, tuned = net(1), net(2)
    before = {name: (value, value.clone()) for name, value in tuned.state_dict().items()}
    lora = extract(base, tuned, rank=1, conv_rank=2, device="cpu", save_precision="float")
    found = network_errors(tuned, runner(tuned), component_of(base), lora)
    for name, value in tuned.state_dict().items():
        assert value.data_ptr() == before[name][0].data_ptr()
        assert torch.equal(value, before[name][1])
    wanted = list(outputs_of(runner(tuned)))
    plain = [relative_error(*pair) for pair in zip(outputs_of(runner(base)), wanted, strict=True)]
    assert found.base == pytest.approx(plain, rel=1e-5)
    fused = net(1)
    state = fused.state_dict()
    fused.load_state_dict({**state, **{name: state[name] + lora.delta(ParamName(name)) for name in lora.params}})
    errors = [relative_error(*pair) for pair in zip(outputs_of(runner(fused)), wanted, strict=True)]
    assert found.lora == pytest.approx(errors, rel=1e-4)
    assert found.worst == max(found.lora)
    assert min(found.lora) < found.typical < found.worst
    assert found.typical < found.typical_base


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(40, 8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.out(self.words(tokens) * mask[..., None])


def network(seed: int = 0, count: int = 12) -> Network:
    torch.manual_seed(seed)
    module = Words().eval()

    def run() -> Iterator[Tensor]:
        for index in range(count):
            yield module(torch.arange(5)[None] + index % 3, mask=torch.tensor([[0, 1, 1, 1, 1]]))

    return Network(module, run)


def test_checks_are_the_held_samples_as_they_are_and_with_other_words() -> None:
    tuned = network()
    checks = network_checks(tuned, 12)
    assert [one.sample for one in checks if one.kind == "held"] == [2, 6, 10]
    assert [one.sample for one in checks if one.kind == "content"] == [0, 1, 3, 4, 6, 7, 9, 10]
    outputs = list(tuned.run())
    assert torch.equal(checks[1].wanted, outputs[6].detach())
    assert not torch.allclose(checks[5].wanted, outputs[3].detach())
    assert torch.equal(checks[5].wanted[:, 0], outputs[3][:, 0].detach())  # the mask stayed
    again = dict(check_outputs(tuned, "content", {one.sample for one in checks[3:]}))
    assert all(torch.equal(again[one.sample], one.wanted) for one in checks[3:])
    assert not tuned.module._forward_pre_hooks
    assert network_checks(tuned, 3) == ()


def test_the_tuned_network_has_no_error_and_the_base_its_own() -> None:
    tuned, base = network(), network(1)
    trial = NetworkTrial(tuned, component_of(base.module), network_checks(tuned, 12), SILENT)
    assert trial.has_points
    assert trial.images() is None
    before = trial.error()
    assert before is not None
    assert before.typical < 1e-6
    with kept_weights(tuned.module):
        trial.take()
        found = trial.error()
    assert found is not None
    with torch.no_grad():
        pairs = list(zip(base.run(), network().run(), strict=True))
    errors = [float((pairs[index][0] - pairs[index][1]).norm() / pairs[index][1].norm()) for index in (2, 6, 10)]
    assert found.typical == pytest.approx(math.prod(errors) ** (1 / 3), rel=1e-4)
    assert found.shifted.keys() == {"content"}
    assert found.shifted["content"] != pytest.approx(found.typical, rel=1e-3)
