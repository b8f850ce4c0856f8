"""Fabric for a command: devices, refusals, silence. The strategies at work: tests/e2e/test_training.py."""

import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import nn

from lbm_lora.errors import ConfigError
from lbm_lora.training.launch import drop_gathered, open_fabric


@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_rank_and_world_are_known_before_the_launch(monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 0, raising=False)  # Fabric sets it, for loggers in this process too
    monkeypatch.setenv("LOCAL_RANK", "1")
    fabric = open_fabric("cpu", 2, 1, strategy)
    assert (fabric.global_rank, fabric.world_size, fabric.is_global_zero) == (1, 2, False)


@pytest.mark.parametrize("strategy", ["no_such", "fsdp"])
def test_what_fabric_refuses_is_an_error_of_the_configuration(strategy: str) -> None:
    with pytest.raises(ConfigError, match=rf"^strategy {strategy} on 1 x 1 cpu: .+"):
        open_fabric("cpu", 1, 1, strategy)


def test_only_sharded_modules_are_gathered() -> None:
    class Gathered(nn.Linear):
        dropped = 0

        def reshard(self) -> None:
            self.dropped += 1

    network = nn.Sequential(nn.Linear(2, 2), Gathered(2, 2))
    drop_gathered(network)
    assert network[1].dropped == 1
