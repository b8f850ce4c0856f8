"""Statistics of any network: outputs of any shape, and what cannot be measured."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lbm_lora.calibration import CalibrationSettings, collect_network, load_statistics, save_statistics
from lbm_lora.errors import ConfigError, InputError, PatternError
from lbm_lora.fidelity.network import Run


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval()


def runner(net: nn.Module, count: int = 5) -> Run:
    """Rows of tokens of different lengths."""
    draw = torch.Generator().manual_seed(1)
    data = [torch.randint(0, 9, (4 + index % 3,), generator=draw) for index in range(count)]

    def run() -> Iterator[Tensor]:
        for tokens in data:
            yield net(tokens)

    return run


def test_statistics_of_a_network_are_means_over_its_samples(net: nn.Sequential, tmp_path: Path) -> None:
    run = runner(net)
    statistics = collect_network(net, run)
    assert list(statistics) == ["1", "3"]
    assert repr(statistics) == "<Statistics: 2 layers, 5 samples>"
    energies = [float(output.detach().square().sum()) for output in run()]
    energy = (sum(energies) - energies[2]) / 4  # one of four and more is held out
    assert statistics.output_energy == pytest.approx(energy, rel=1e-5)
    assert all(one.grad is None and one.requires_grad for one in net.parameters())
    save_statistics(statistics, tmp_path / "s.safetensors")
    loaded = load_statistics(tmp_path / "s.safetensors")
    assert loaded.origin == statistics.origin
    assert loaded.unmeasured == statistics.unmeasured == {"0": "Embedding"}


def test_only_chosen_modules_are_measured(net: nn.Sequential) -> None:
    assert list(collect_network(net, runner(net), names=["3"])) == ["3"]
    with pytest.raises(PatternError, match="pattern 'attention' matches none of 2 names"):
        collect_network(net, runner(net), names=["attention"])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda net: lambda: iter(()), "run yields no sample"),
        (lambda net: lambda: iter([(net(torch.zeros(1).long()),)]), "run must yield tensors, got tuple"),
        (lambda net: lambda: iter([net(torch.zeros(1).long()).detach()]), "sample 0 has no graph to take gradients of"),
        (lambda net: lambda: iter([torch.zeros(2)]), "calls none of the 2 layers. Does it run this module?"),
        (lambda net: lambda: iter([torch.inf * net(torch.zeros(1).long())]), "sample 0 has values that are not finite"),
    ],
)
def test_what_a_run_must_yield(net: nn.Sequential, broken: Callable[[nn.Module], Run], message: str) -> None:
    with pytest.raises(InputError) as caught:
        collect_network(net, broken(net))
    assert message in str(caught.value)


def test_a_run_that_ends_early_is_said(net: nn.Sequential) -> None:
    data = iter([torch.zeros(3).long()] * 3)  # an iterator is used up after the first time
    with pytest.raises(InputError, match=r"the first sample of run calls none|run yielded 0 samples"):
        collect_network(net, lambda: (net(tokens) for tokens in data))


def test_networks_that_cannot_be_measured(net: nn.Sequential) -> None:
    with pytest.raises(ConfigError, match=r"in training mode: its outputs may be random\. Call module\.eval"):
        collect_network(net.train(), runner(net))
    net.eval()
    with pytest.raises(ConfigError, match=r"gradients exceed the range of fp16"):
        collect_network(nn.Linear(2, 2).half().eval(), runner(net))
    wrapped = nn.ModuleDict({"module": net}).eval()
    with pytest.raises(ConfigError, match=r"^ModuleDict is a wrapper: its weights are called module\.0\.weight"):
        collect_network(wrapped, runner(net))
    assert CalibrationSettings().probes_for(5) == 4
