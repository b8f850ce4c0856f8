"""The tables of docs/formats.md are those of the formats and of the interop tests as they are now."""

from pathlib import Path

import pytest

from tools.write_formats_page import FORMATS, PAGE, base, cell, features, page


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "run: python tools/write_formats_page.py"


def test_a_place_that_is_missing_is_said() -> None:
    with pytest.raises(AssertionError, match="no place for the table held"):
        page("")


def test_a_cell_is_what_writing_and_reading_give(tmp_path: Path) -> None:
    component, found = base(), features()
    assert cell(found["norms"], "kohya", component, tmp_path / "1") == "no"
    assert cell(found["norms"], "peft", component, tmp_path / "2") == "`replace`"
    assert cell(found["biases of layers with factors"], "diffusers", component, tmp_path / "3") == "`lora_bias`"
    assert cell(found["factors in 8 bits"], "comfyui", component, tmp_path / "4") == "as float"
    assert {cell(one, "native", component, tmp_path / name) for name, one in found.items()} == {"yes"}
    assert len(FORMATS) == 7
