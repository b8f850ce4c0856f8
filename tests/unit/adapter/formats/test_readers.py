"""Every format says who reads it."""

from typing import get_args

from lbm_lora.adapter.formats.readers import READERS
from lbm_lora.configs.values import ForeignFormat, FormatName


def test_every_format_has_a_reader() -> None:
    assert list(READERS) == list(get_args(FormatName))
    assert set(get_args(FormatName)) == {"native", *get_args(ForeignFormat)}
    assert all(line.isascii() and line[-1] not in ".," for line in READERS.values())
