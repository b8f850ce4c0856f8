"""Which presenters there are."""

from lbm_lora.cli.commands import COMMANDS, INFER_SHARDS
from lbm_lora.cli.present import PRESENTERS


def test_every_command_has_a_presenter() -> None:
    assert set(PRESENTERS) == {command.module for command in (*COMMANDS.values(), INFER_SHARDS)}
