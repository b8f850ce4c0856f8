"""Where the words for `doctor` end, and those of the command line begin."""

import pytest

from lbm_lora.cli.nested import split_line
from lbm_lora.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "own", "line"),
    [
        ([], [], []),
        (["--json"], ["--json"], []),
        (["--", "fuse", "--json"], [], ["fuse", "--json"]),
        (["--json", "--", "fuse"], ["--json"], ["fuse"]),
        (["--threads", "2", "fuse", "--threads", "1"], ["--threads", "2"], ["fuse", "--threads", "1"]),
        (["fuse", "--save_to", "a b"], [], ["fuse", "--save_to", "a b"]),
        (["fuse --save_to 'a b'"], [], ["fuse", "--save_to", "a b"]),
        (["--", "lbm-lora", "data", "pack", "x"], [], ["data", "pack", "x"]),
        (["lbm-lora fuse"], [], ["fuse"]),
    ],
)
def test_the_line_begins_after_the_dashes_or_with_the_first_word(
    words: list[str], own: list[str], line: list[str]
) -> None:
    assert split_line(words) == (own, line)


def test_open_quotes_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be split into words: No closing quotation"):
        split_line(["fuse --save_to 'a"])
