"""The loss meter: means and times between two readings."""

import pytest
import torch

from lbm_lora.train import meter as module
from lbm_lora.train.meter import Meter


def test_means_and_times_between_two_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    meter = Meter()
    meter.start()
    for loss in (1.0, 2.0):
        clock[0] += 3
        meter.add(torch.tensor(loss))
    with meter.paused():
        clock[0] += 100
    assert meter.read() == (torch.tensor(1.5), 3.0)
    clock[0] += 5
    meter.add(torch.tensor(7.0))
    assert meter.read() == (torch.tensor(7.0), 5.0)
    with pytest.raises(AssertionError, match="nothing was measured"):
        meter.read()
