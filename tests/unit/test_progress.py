"""Warnings and their parts, and the listener that ignores everything."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from lbm_lora.errors import Option, spelled
from lbm_lora.progress import SILENT, LbmLoraWarning, Progress, warn

PARTS = ("size 100 is no bucket: give ", Option("size"), " 128, or ", Option("dense", is_off=True), ".")


def test_a_warning_reads_as_its_parts() -> None:
    with pytest.warns(LbmLoraWarning) as caught:
        warn(*PARTS)
    (one,) = caught
    assert str(one.message) == "size 100 is no bucket: give size 128, or dense=False."


def test_a_front_end_spells_the_options_of_a_warning() -> None:
    with pytest.warns(LbmLoraWarning) as caught:
        warn(*PARTS)
    message = caught[0].message
    assert isinstance(message, LbmLoraWarning)
    assert message.args == PARTS
    assert spelled(message.args, lambda option: f"--{option.name}").endswith("give --size 128, or --dense.")


def test_a_caller_filters_warnings_by_their_category() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", LbmLoraWarning)
        warn("nothing of this is heard")
        warnings.simplefilter("error", LbmLoraWarning)
        with pytest.raises(LbmLoraWarning, match=r"^this stops$"):
            warn("this stops")


SCRIPT = """\
from lbm_lora.progress import warn

def work():
    warn("look here")

work()
"""


def test_a_warning_names_the_line_that_called_the_function_that_warns(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=120)
    assert done.stderr == f"{script}:6: LbmLoraWarning: look here\n  work()\n"


def test_silent_listens_to_everything_and_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert isinstance(SILENT, Progress)
    SILENT.start(0, "translating images")
    SILENT.advance()
    SILENT.advance(3)
    SILENT.note("something found")
    assert capfd.readouterr() == ("", "")


def test_a_listener_has_all_three_methods() -> None:
    class Half:
        def start(self, total: int, what: str) -> None: ...

        def advance(self, n: int = 1) -> None: ...

    assert not isinstance(Half(), Progress)
