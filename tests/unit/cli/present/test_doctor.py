"""What a user reads of `doctor`."""

import json

import pytest

from lbm_lora.cli.main import main
from lbm_lora.cli.present import present
from lbm_lora.machine import Check
from lbm_lora.workflows import doctor
from lbm_lora.workflows.doctor import Diagnosis

MACHINE = (
    Check("memory", "ok", "8.0 GB free"),
    Check("torch", "problem", "2.5 is too old", "Install 2.6."),
)
TEXT = """\
this machine
  ok       memory  8.0 GB free
  PROBLEM  torch   2.5 is too old
                   -> Install 2.6.

1 problem found."""


def test_a_check_is_a_line_with_its_remedy_below() -> None:
    assert present("doctor", Diagnosis(machine=MACHINE)) == TEXT


def test_a_problem_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "machine_checks", lambda: MACHINE)
    assert main(["doctor", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["machine"][1] == {
        "subject": "torch",
        "level": "problem",
        "found": "2.5 is too old",
        "remedy": "Install 2.6.",
    }
    assert err.endswith("error: 1 problem found.\n")
    monkeypatch.setattr(doctor, "machine_checks", lambda: MACHINE[:1])
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("No problem found.\n")
