"""How lines of a message are spelt."""

from lbm_lora.cli.spelling import line, one_line, printable


def test_one_line_spells_control_characters() -> None:
    assert one_line("a\n\t b\x1b[31m\u202e é") == r"a b\x1b[31m\u202e é"


def test_a_text_keeps_its_lines_and_no_other_control() -> None:
    assert printable("a  \x1b]0;title\x07 \r\n  b") == "a  \\x1b]0;title\\x07 \\r\n  b"


def test_a_line_has_the_colour_of_its_kind_on_its_first_word() -> None:
    text = line("error", "it [bold]is\nlate[/bold].")
    assert text.plain == "error: it [bold]is late[/bold]."
    assert [(span.start, span.end, span.style) for span in text.spans] == [(0, 6, "bold red")]
