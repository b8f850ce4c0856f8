"""Messages for the terminal: printable, and on one line."""

from rich.text import Text

_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def one_line(text: str) -> str:
    """Text without line breaks, and printable."""
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """Text with its control characters spelt out, line breaks excepted: names from files may hold anything."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)


def line(kind: str, message: str) -> Text:
    """`error: message`, on one line, its first word in the colour of its kind: error, warning or note."""
    return Text.assemble((f"{kind}:", _STYLES[kind]), " ", one_line(message))
