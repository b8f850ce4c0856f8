"""A check as a value: its texts, in which options are data."""

from lbm_lora.cli.console import jsonable
from lbm_lora.errors import ConfigError, Option
from lbm_lora.machine import Check, Message
from lbm_lora.machine.check import check


def test_an_option_is_spelt_by_who_shows_it() -> None:
    message = Message("Use ", Option("check", is_off=True), ".")
    assert str(message) == "Use check=False."
    assert message.spelled(lambda option: f"--no_{option.name}") == "Use --no_check."
    assert message == Message("Use ", Option("check", is_off=True), ".") != Message("Use check=False.")


def test_an_error_becomes_its_text_on_one_line() -> None:
    assert Message.of(ConfigError("Give ", Option("images"), ".")) == Message("Give ", Option("images"), ".")
    assert str(Message.of(FileNotFoundError(2, "No such file", "a.png"))) == "a.png: No such file."
    assert str(Message.of(RuntimeError("two\nlines"))) == "RuntimeError: two lines"


def test_a_check_is_plain_in_json() -> None:
    one: Check = check(Option("device"), "cuda: cpu", level="note", remedy="Install torch.")
    assert jsonable(one) == {"subject": "device", "level": "note", "found": "cuda: cpu", "remedy": "Install torch."}
