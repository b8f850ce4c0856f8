"""Targets and templates."""

import pytest
from jinja2 import UndefinedError

from benchmarks.page import Target, render


@pytest.mark.parametrize(
    ("value", "at_least", "by_difference", "words"),
    [
        (1.4, False, False, "met"),
        (3.0, False, False, "missed by 50 %"),
        (3.0, True, False, "met"),
        (1.0, True, False, "missed by 100 %"),
        (1.0, True, True, "missed by 1 x"),
        (2.5, False, True, "missed by 0.5 x"),
    ],
)
def test_a_verdict_says_by_how_much(value: float, at_least: bool, by_difference: bool, words: str) -> None:
    target = Target("what", 2, "x", lambda _: value, at_least=at_least, by_difference=by_difference)
    assert target.row({}) == ("what", f"{'>=' if at_least else '<='} 2 x", f"{value:.2f} x", words)


def test_what_a_result_lacks_was_not_measured() -> None:
    assert Target("what", 0, "", lambda found: found["there"], ".0f").row({"there": 0.0})[1:] == ("<= 0", "0", "met")
    for target in (Target("what", 2, "x", lambda found: found["missing"]), Target("what", 2, "x", lambda _: None)):
        assert target.row({})[2:] == ("-", "not measured")


def test_a_value_that_a_template_misses_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="runs"):
        render("performance.md.j2", results={"extract": {"pair": {}}})
