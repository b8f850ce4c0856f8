"""The program's entry: an interrupt before any command runs is a line."""

import subprocess
import sys

import pytest

from lbm_lora import __version__
from lbm_lora.cli.__main__ import main


def test_an_interrupt_while_it_starts_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("lbm_lora.cli.main.main", interrupted)
    assert main() == 130
    assert capsys.readouterr() == ("", "error: interrupted.\n")


@pytest.mark.parametrize("module", ["lbm_lora", "lbm_lora.cli"])
def test_it_is_a_module_that_runs(module: str) -> None:
    words = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == f"lbm-lora {__version__}\n"
