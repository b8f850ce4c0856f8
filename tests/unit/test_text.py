"""JSON and YAML of others: what is read, and what is refused in one line, at once."""

import datetime
import math
import os
from pathlib import Path

import pytest

from lbm_lora.text import MOST_BYTES, TextError, dump_yaml, parse_json, parse_yaml, read_text


def bomb(levels: int) -> str:
    """A billion laughs: each list holds the one before nine times."""
    lines = ["a0: &a0 [lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0123", 123),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("1e-4", 1e-4),
        ("-.inf", -math.inf),
        ("2024-01-02", datetime.date(2024, 1, 2)),
    ],
)
def test_numbers_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = parse_yaml(text)
    assert (found, type(found)) == (value, type(value))
    assert parse_yaml(dump_yaml({"a": text})) == {"a": text}


def test_references_are_read() -> None:
    assert parse_yaml("a: &x [1, 2]\nb: *x") == {"a": [1, 2], "b": [1, 2]}
    assert parse_yaml("") is None
    assert parse_yaml("a: &x {k: 1}\nb:\n  <<: *x\n  j: 2") == {"a": {"k": 1}, "b": {"k": 1, "j": 2}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (bomb(12), "has more than 100,000 values once its references are followed"),
        ("a: &x [*x]", "refers to itself"),
        ("[" * 5000 + "]" * 5000, "nests too deeply, or refers to itself"),
        ("a: 1\nb: 2\na: 3", "repeats the key 'a'"),
        ("a: [1", "is not plain YAML: while parsing a flow sequence"),
        ("a: !!python/object/apply:os.system [id]", "is not plain YAML: could not determine a constructor"),
        ("a: 2024-13-45", "is not plain YAML: month must be in 1..12"),
    ],
)
def test_yaml_that_is_refused(text: str, said: str) -> None:
    with pytest.raises(TextError) as caught:
        parse_yaml(text)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 200_000 + "]" * 200_000, "nests too deeply"),
        ('{"a": 1, "a": 2}', "repeats the key 'a'"),
        ('{"a": NaN}', "holds NaN, which is not JSON"),
        ("{]", "is not JSON: "),
        ("9" * 5000, "holds a whole number of 5,000 digits; the limit is 40"),
        ("[1e999]", "holds 1e999, which leaves the range of numbers"),
        (b"\xff\xfe", "is not JSON: "),
    ],
)
def test_json_that_is_refused(text: str | bytes, said: str) -> None:
    with pytest.raises(TextError) as caught:
        parse_json(text)
    assert str(caught.value).startswith(said)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """A FIFO would wait for ever, and /dev/zero never ends."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("fifo", "zero"):
        with pytest.raises(OSError, match="Not a regular file"):
            read_text(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        read_text(tmp_path)


def test_files_that_are_no_text_or_too_large(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xff")
    with pytest.raises(TextError, match="is not a text in UTF-8"):
        read_text(tmp_path / "a")
    with (tmp_path / "b").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(TextError, match="is larger than 16 MiB"):
        read_text(tmp_path / "b")
