"""The device of a `--device` flag."""

import pytest
import torch

from lbm_lora.errors import ConfigError
from lbm_lora.model.device import resolve_device
from lbm_lora.progress import LbmLoraWarning


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps"])
def test_a_device_that_is_not_there_is_one_warning_and_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.warns(LbmLoraWarning, match=rf"^device {name} is not available on this machine\. Using the CPU\.$"):
        assert resolve_device(name) == torch.device("cpu")


def test_what_is_there_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda") == torch.device("cuda")
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    with pytest.warns(LbmLoraWarning, match="is not available on this machine"):
        assert resolve_device("cuda:1") == torch.device("cpu")


def test_auto_without_cuda_is_the_cpu_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device() == torch.device("cpu")


def test_mps_is_refused_where_fp64_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"^device mps: the sums need fp64, which mps does not support\. Use cpu\.$"):
        resolve_device("mps", fp64="the sums need")


@pytest.mark.parametrize("name", ["gpu", "meta", ""])
def test_an_unknown_name(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_device(name)
    assert str(caught.value) == f"device must be one of auto, cpu, cuda, cuda:N, mps, got '{name}'."
