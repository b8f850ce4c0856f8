"""What a user reads of `doctor`."""

from lbm_lora.cli.present import present
from lbm_lora.errors import Option
from lbm_lora.machine import Check, Message
from lbm_lora.machine.check import check
from lbm_lora.workflows.doctor import CommandNeeds, Diagnosis

MACHINE = (check("memory", "8.0 GB free"), check("torch", "2.5 is too old", level="problem", remedy="Install 2.6."))
TIGHT = Check(
    subject=Message("memory"),
    level="problem",
    found=Message("needs 9 GB; 8 GB free"),
    remedy=Message(Option("check", is_off=True), " needs less."),
)
NEEDS = CommandNeeds(name="data_pack", checks=(check(Option("to"), "shards"), TIGHT), memory=9, disk=0)


def test_the_machine_alone() -> None:
    assert present("doctor", Diagnosis(machine=MACHINE)) == ALONE


def test_a_command_with_the_problems_of_the_machine_below_it() -> None:
    assert present("doctor", Diagnosis(machine=MACHINE, command=NEEDS)) == COMMAND
    assert "8.0 GB free" in present("doctor", Diagnosis(machine=MACHINE, command=NEEDS), verbose=True)


ALONE = """\
this machine
  ok       memory  8.0 GB free
  PROBLEM  torch   2.5 is too old
                   -> Install 2.6.

1 problem found. For a command: lbm-lora doctor -- COMMAND --flag value ..."""

COMMAND = """\
lbm-lora data pack
  ok       --to    shards
  PROBLEM  memory  needs 9 GB; 8 GB free
                   -> --no_check needs less.

this machine
  PROBLEM  torch  2.5 is too old
                  -> Install 2.6.

2 problems found. Nothing was run."""
