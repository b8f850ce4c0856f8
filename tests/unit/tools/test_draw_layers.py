"""The image of the layers: what the contracts say is in it, and the committed one is up to date."""

import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tools.draw_layers import IMAGE, ROOT, draw, read_layers

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SVG = "{http://www.w3.org/2000/svg}"


def contracts(*layers: str) -> dict[str, Any]:
    """A pyproject.toml with contracts of its own."""
    return {
        "tool": {
            "importlinter": {
                "contracts": [
                    {"type": "layers", "containers": ["lbm_lora.training"], "layers": ["run"]},
                    {"type": "layers", "containers": ["lbm_lora"], "layers": list(layers)},
                    {
                        "type": "forbidden",
                        "source_modules": ["lbm_lora.low", "lbm_lora.core.files"],
                        "forbidden_modules": ["diffusers"],
                    },
                    {"type": "forbidden", "source_modules": ["lbm_lora.top"], "forbidden_modules": ["tkinter"]},
                ]
            }
        }
    }


def boxes(image: str) -> list[tuple[str, str]]:
    """(class, text) of each box, from top to bottom and left to right."""
    root = ElementTree.fromstring(image)
    kinds = [str(box.get("class")) for box in root.iter(f"{SVG}rect") if box.get("class") in ("core", "upper")]
    labels = [str(label.text) for label in root.iter(f"{SVG}text") if label.get("class") is None]
    return list(zip(kinds, labels, strict=True))


def test_the_committed_image_is_what_the_script_gives() -> None:
    assert IMAGE.read_text(encoding="utf-8") == draw(read_layers(PYPROJECT)), "run: python tools/draw_layers.py"


def test_rows_siblings_and_the_core() -> None:
    layers = read_layers(contracts("top | (side)", "core", "low : lower"))
    assert layers.rows == (("top", "side"), ("core",), ("low", "lower"))
    assert layers.free == (False, False, True)
    assert layers.core == {"low", "core"}
    assert boxes(draw(layers)) == [("upper", "top"), ("upper", "side"), ("core", "core"), ("core", "low  lower")]


def test_a_row_stays_within_the_page() -> None:
    root = ElementTree.fromstring(draw(read_layers(PYPROJECT)))
    page = float(str(root.get("width")))
    for box in root.iter(f"{SVG}rect"):
        assert float(str(box.get("x"))) >= 0
        assert float(str(box.get("x"))) + float(str(box.get("width"))) <= page


def test_the_layers_of_the_package_are_needed() -> None:
    with pytest.raises(ValueError, match="0 import contracts are about the layers of lbm_lora"):
        read_layers({"tool": {"importlinter": {"contracts": []}}})


def test_every_module_is_on_the_architecture_page() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "src" / "lbm_lora"
    modules = {path.stem for path in Path(package).iterdir() if path.suffix in ("", ".py")}
    modules -= {"__init__", "__main__", "__pycache__"}
    assert {name for row in read_layers(PYPROJECT).rows for name in row} == modules
    assert sorted(name for name in modules if f"`{name}`" not in page) == []
