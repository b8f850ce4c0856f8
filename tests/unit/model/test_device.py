"""The device of a `--device` flag."""

import logging

import pytest
import torch

from lbm_lora.errors import ConfigError
from lbm_lora.model.device import resolve_device


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps"])
def test_a_device_that_is_not_there_is_one_warning_and_the_cpu(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert resolve_device(name) == torch.device("cpu")
    assert caplog.messages == [f"--device {name}: this machine has no such device. The CPU is used."]


def test_what_is_there_is_taken(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda") == torch.device("cuda")
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    assert not caplog.messages
    assert resolve_device("cuda:1") == torch.device("cpu")


def test_auto_without_cuda_is_the_cpu_without_a_word(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device() == torch.device("cpu")
    assert not caplog.messages


@pytest.mark.parametrize("name", ["gpu", "meta", ""])
def test_an_unknown_name(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_device(name)
    assert str(caught.value) == f"--device '{name}' is not known. Take one of auto, cpu, cuda, cuda:N, mps."
