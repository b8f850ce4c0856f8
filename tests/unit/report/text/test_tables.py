"""The layout of tables, facts and paragraphs."""

import pytest

from lbm_lora.report.text.tables import WIDTH, facts, numbers, paragraph, table, words


def rows_of(*cells: tuple[str, str], width: int = WIDTH) -> list[str]:
    return table([words("name"), numbers("error")], cells, width=width)


def test_text_stands_to_the_left_and_numbers_to_the_right() -> None:
    assert rows_of(("a", "5 %"), ("conv_in", "100.0 %")) == [
        "  name       error",
        "  a            5 %",
        "  conv_in  100.0 %",
    ]


def test_a_table_without_heads_has_no_head_line_and_one_without_rows_no_line() -> None:
    assert table([words(), numbers()], [("a", "1"), ("bb", "22")]) == ["  a    1", "  bb  22"]
    assert rows_of() == []


def test_what_is_too_long_goes_on_below_and_nothing_is_lost() -> None:
    name = "".join(f"block_{i}." for i in range(20))
    lines = rows_of((name, "1.25 %"))
    assert max(map(len, lines)) <= 100
    assert lines[1].endswith("1.25 %")
    assert "".join(line.removesuffix("1.25 %").strip() for line in lines[1:]) == name
    assert rows_of((name, "1.25 %"), width=1000)[1] == f"  {name}  1.25 %"


def test_names_cannot_steer_a_terminal_and_are_no_markup() -> None:
    (line,) = table([words(), words()], [("a\x1b[31m\n\t", "[bold]b[/bold] :smile: \u202e")])
    assert line == r"  a\x1b[31m\n\t  [bold]b[/bold] :smile: \u202e"
    assert paragraph("a\x1bb") == [r"  a\x1bb"]
    assert facts([("[red]\r", "\x07")]) == [f"  {'[red]' + chr(92) + 'r':<32}{chr(92)}x07"]


def test_facts_have_their_values_in_one_column() -> None:
    lines = facts([("error", "5 %"), ("a label that is longer than it should be", "1"), ("why", "so " * 40)])
    assert lines[0] == f"  {'error':<32}5 %"
    assert lines[1:3] == [f"  {'a label that is longer than it':<32}1", "  should be"]
    assert lines[3].startswith(f"  {'why':<32}so so")
    assert lines[4].startswith(f"  {'':<32}so so")


def test_paragraphs_break_at_spaces() -> None:
    lines = paragraph("up_blocks.0.attentions-to_out " * 6, indent=4)
    assert {line.strip() for line in lines} == {" ".join(["up_blocks.0.attentions-to_out"] * 3)}
    assert all(line.startswith("    up") for line in lines)
    assert max(map(len, paragraph("x" * 250))) == 100


@pytest.mark.parametrize(
    "environment",
    [{"TERM": "dumb", "COLUMNS": "20"}, {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "LINES": "3"}],
)
def test_the_terminal_makes_no_difference(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    before = rows_of(("down_blocks.0.attentions.0.proj_in", "1.25 %"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert rows_of(("down_blocks.0.attentions.0.proj_in", "1.25 %")) == before
