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


def test_mps_is_refused_where_fp64_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"^device mps: the sums need fp64, which mps does not support\. Use cpu\.$"):
        resolve_device("mps", fp64="the sums need")


@pytest.mark.parametrize("name", ["gpu", "meta", ""])
def test_an_unknown_name(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_device(name)
    assert str(caught.value) == f"device must be one of auto, cpu, cuda, cuda:N, mps, got '{name}'."
