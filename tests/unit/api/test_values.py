"""What callers hand over in place of files."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from lbm_lora.adapter import Adapter
from lbm_lora.api.values import adapter_of, image_files, listed, path_of
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import ImageError


def test_a_text_and_a_path_are_handed_on_as_they_are() -> None:
    for images in ("photos/*.jpg", Path("photos/*.jpg")):
        with image_files(images) as files:
            assert files == "photos/*.jpg"


def test_images_of_pil_are_files_for_a_while_and_stand_beside_paths(tmp_path: Path) -> None:
    image = Image.new("RGB", (3, 2), (1, 2, 3))
    with image_files([str(tmp_path / "a.png"), image]) as files:
        assert isinstance(files, tuple)
        assert files[0] == str(tmp_path / "a.png")
        assert Path(files[1]).name == "image-2.png"
        with Image.open(files[1]) as read:
            assert read.convert("RGB").tobytes() == image.tobytes()
    assert not Path(files[1]).exists()
    with image_files(image) as files:
        assert len(files) == 1


def test_a_mode_that_png_does_not_hold_is_named() -> None:
    text = r"^image-1: cannot write mode CMYK as PNG\. Give it in mode RGB: image\.convert\('RGB'\)\.$"
    with pytest.raises(ImageError, match=text), image_files(Image.new("CMYK", (2, 2))):
        pass


def test_one_lora_is_a_list_of_one_and_an_adapter_is_taken_as_it_is() -> None:
    adapter = Adapter({}, {}, path=Path("x.safetensors"))
    assert listed(adapter) == [adapter]
    assert listed("x.safetensors") == [Path("x.safetensors")]
    assert listed([adapter, "y.safetensors"]) == [adapter, Path("y.safetensors")]
    base = open_checkpoint({"weight": torch.ones(1)}).component()
    assert adapter_of(adapter, "auto", base) is adapter
    assert path_of(adapter, "LoRA") == path_of("x.safetensors", "LoRA") == Path("x.safetensors")
    assert path_of(Adapter({}, {}), "LoRA 2") == Path("LoRA 2")
