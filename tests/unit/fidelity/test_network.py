"""A network with other weights: outputs compared, and its own weights put back."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from lbm_lora.errors import InputError
from lbm_lora.fidelity.network import Run, component_of, kept_weights, network_errors, outputs_of, put_deltas
from lbm_lora.fidelity.output_errors import relative_error
from lbm_lora.naming import ParamName
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


def test_weights_come_back_after_an_error() -> None:
    tuned = net(2)
    before = tuned(torch.ones(1, 2, 5, 5))

    def fail() -> None:
        with kept_weights(tuned):
            put_deltas(tuned, component_of(net(1)))
            assert not torch.equal(tuned(torch.ones(1, 2, 5, 5)), before)
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert torch.equal(tuned(torch.ones(1, 2, 5, 5)), before)


def test_samples_must_be_the_same_each_time() -> None:
    base, tuned = net(1), net(2)
    lora = extract(base, tuned, rank=1, device="cpu")
    data = iter([torch.zeros(1, 2, 5, 5)] * 3)
    with pytest.raises(InputError, match="run yielded 3 samples first, and then another number"):
        network_errors(tuned, lambda: (tuned(one) for one in data), component_of(base), lora)
    with pytest.raises(InputError, match="run yields no sample"):
        network_errors(tuned, list, component_of(base), lora)
