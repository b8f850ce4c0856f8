"""Fabric for a command: devices, refusals, silence. The strategies at work: tests/e2e/test_training.py."""

import logging
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from lbm_lora.errors import ConfigError
from lbm_lora.training.launch import drop_gathered, is_sharded, open_fabric, quiet_lightning


@dataclass(frozen=True)
class On:
    """What a command runs on."""

    device: str = "cpu"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"


def test_one_process_needs_no_launch() -> None:
    fabric = open_fabric(On())
    fabric.launch()
    assert (fabric.device, fabric.global_rank, fabric.world_size) == (torch.device("cpu"), 0, 1)
    assert not is_sharded(fabric)
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_rank_and_world_are_known_before_the_launch(monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    fabric = open_fabric(On(devices=2, strategy=strategy))
    assert (fabric.global_rank, fabric.world_size, fabric.is_global_zero) == (1, 2, False)


def test_fsdp_parts_what_its_function_says() -> None:
    assert is_sharded(open_fabric(On(devices=2, strategy="fsdp"), lambda module, mesh: module))


@pytest.mark.parametrize("on", [On(strategy="no_such"), On(strategy="fsdp")])
def test_what_fabric_refuses_is_an_error_of_the_configuration(on: On) -> None:
    with pytest.raises(ConfigError, match=rf"^strategy {on.strategy} on 1 x 1 cpu: .+"):
        open_fabric(on)


def test_fabric_is_quiet_and_speaks_again_afterwards() -> None:
    logger = logging.getLogger("lightning.fabric")
    before = logger.level
    with quiet_lightning():
        assert not logger.isEnabledFor(logging.INFO)
        assert logger.isEnabledFor(logging.WARNING)
    assert logger.level == before


def test_only_sharded_modules_are_gathered() -> None:
    class Gathered(nn.Linear):
        dropped = 0

        def reshard(self) -> None:
            self.dropped += 1

    network = nn.Sequential(nn.Linear(2, 2), Gathered(2, 2))
    drop_gathered(network)
    assert network[1].dropped == 1
