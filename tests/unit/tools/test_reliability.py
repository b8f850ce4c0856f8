"""The page about reliability states the limits that the code has."""

from tools.reliability import PAGE, counts, filled, limits


def test_the_limits_on_the_page_are_those_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page, {"limits": limits()}) == page
    assert "| JSON or YAML file | 16 MiB |" in page


def test_cases_are_counted_by_kind_of_input() -> None:
    assert counts(["a", "b", "b", "flags of x", "flags of y"]).splitlines()[2:] == [
        "| a | 1 |",
        "| b | 2 |",
        "| flags | 2 |",
        "| all | 5 |",
    ]
