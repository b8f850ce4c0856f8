"""The commands: their words, and the configs and workflows behind them."""

from dataclasses import is_dataclass

import pytest

from lbm_lora.cli.commands import COMMANDS, GROUPS, INFER_SHARDS, command_for, family_of


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_a_config_a_workflow_and_a_place_in_the_help(name: str) -> None:
    command = COMMANDS[name]
    assert is_dataclass(command.config_class())
    assert callable(command.workflow().run)
    assert command.group in GROUPS


@pytest.mark.parametrize("flag", ["--source_shards", "--source-shards", "--source_shards=a.tar"])
def test_infer_over_shards_is_a_command_of_its_own(flag: str) -> None:
    assert command_for("infer", ["--seed", "1", flag]) is INFER_SHARDS
    assert command_for("infer", ["--source_image", "source_shards"]) is COMMANDS["infer"]
    assert command_for("extract", [flag]) is COMMANDS["extract"]


def test_a_family_is_what_begins_with_its_word() -> None:
    assert list(family_of("data")) == ["data pack", "data check"]
    assert family_of("dat") == family_of("extract") == {}
