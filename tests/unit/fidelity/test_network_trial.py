"""A LoRA run in any network before it is written, at samples that were held out."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from lbm_lora.errors import InputError
from lbm_lora.fidelity.network import Network, component_of, kept_weights
from lbm_lora.fidelity.network_trial import NetworkTrial, check_outputs, network_checks
from lbm_lora.progress import SILENT


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


def test_another_run_is_refused() -> None:
    tuned = network()
    checks = network_checks(tuned, 12)
    short = NetworkTrial(Network(tuned.module, network(count=5).run), component_of(tuned.module), checks, SILENT)
    with pytest.raises(InputError, match="run yields fewer samples than in the calibration: 1 of 3"):
        short.error()
    other = Network(tuned.module, lambda: (torch.zeros(4) for _ in range(12)))
    with pytest.raises(InputError, match=r"yields an output of shape \(4,\) for sample 2, and \(1, 5, 3\)"):
        NetworkTrial(other, component_of(tuned.module), checks, SILENT).error()
