"""One sample after the other, of any network: what stops it. The sums: test_hooks.py."""

import pytest
import torch
from torch import nn

from lbm_lora.calibration import Sums, find_layers
from lbm_lora.calibration.samples import Sample, add_sample, random_signs
from lbm_lora.errors import InputError
from lbm_lora.fidelity.points import generator


def test_probes_are_signs() -> None:
    probe = random_signs((4, 50, 50), generator("probe"))
    assert set(probe.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(probe.mean())) < 0.04
    assert torch.equal(probe, random_signs((4, 50, 50), generator("probe")))


def test_an_output_that_is_not_finite_is_named() -> None:
    net = nn.Linear(2, 2)
    layers = find_layers(net, lambda: net(torch.zeros(1, 2)))
    sums = Sums.empty(layers, {}, dense_up_to=8, sketch_rank=0, seed=0, device=torch.device("cpu"))
    sample = Sample(forward=lambda: net(torch.tensor([[torch.inf, 0.0]])), weight=1.0, key=(0,), label="the output")
    with pytest.raises(InputError, match=r"^the output has values that are not finite\."):
        add_sample(net, layers, sample, 1, sums)
