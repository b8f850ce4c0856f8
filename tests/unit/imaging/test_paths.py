"""Sources by path, folder and glob; one output for each, never an input."""

from pathlib import Path

import pytest
from PIL import Image

from lbm_lora.errors import ImageError
from lbm_lora.imaging.paths import expand_sources, plan_outputs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """b.png, a.JPG, c[1].png, a hidden image, a text file, and a sub-folder with one image."""
    root = tmp_path / "photos"
    (root / "deeper.png").mkdir(parents=True)
    for name in ("b.png", "a.JPG", "c[1].png", ".hidden.png", "deeper.png/d.webp"):
        Image.new("RGB", (8, 8)).save(root / name)
    (root / "notes.txt").write_text("x")
    return root


def names(paths: tuple[Path, ...]) -> list[str]:
    return [path.name for path in paths]


def test_a_folder_stands_for_its_images(folder: Path) -> None:
    assert names(expand_sources(str(folder))) == ["a.JPG", "b.png", "c[1].png"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "none.png",
            r"none\.png does not exist\. The folder .* has .*b\.png, .*\. Give an image, a folder of im",
        ),
        ("bb.png", r"bb\.png does not exist\. Did you mean .*/b\.png\? Give an image, "),
        ("*.bmp", r"'.*\*\.bmp' matches no image\. The folder .* holds .* files.*\. Give an image, a folder"),
        ("gone/*.png", r"'.*' matches no image\. .*gone does not exist\. .* Give an image, a folder"),
        (
            "empty",
            r"empty has no image to read \(PNG, .*\)\. The folder .*empty is empty\. Give a folder with images\.$",
        ),
    ],
)
def test_nothing_found_is_said(folder: Path, name: str, message: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ImageError, match=message):
        expand_sources(str(folder / name))


def test_several_sources_to_a_folder(tmp_path: Path) -> None:
    sources = [Path("in/a.jpg"), Path("in/b.gif"), Path("in/c.heic")]
    assert names(plan_outputs(sources, str(tmp_path / "out"))) == ["a.jpg", "b.png", "c.png"]
    sources = [Path("in/a.source.jpg"), Path("in/b.source.gif"), Path("in/.source.png"), Path("in/source.png")]
    assert names(plan_outputs(sources, str(tmp_path / "out"))) == ["a.jpg", "b.png", ".source.png", "source.png"]


def test_signs_in_the_name_of_a_folder_are_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "photos [1]"
    folder.mkdir()
    for name in ("a.png", "b.jpg"):
        (folder / name).touch()
    assert expand_sources(f"{folder}/*.jpg") == (folder / "b.jpg",)
    assert expand_sources(f"{tmp_path}/photos*/*.png") == (folder / "a.png",)
