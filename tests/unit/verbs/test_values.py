"""What callers hand over in place of files."""

import errno
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from lbm_lora.adapter import Adapter
from lbm_lora.calibration import Statistics
from lbm_lora.calibration.statistics import Origin
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import ImageError, OutputError
from lbm_lora.verbs.values import adapter_of, image_files, label_of, listed, path_of


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


def test_an_image_of_pil_is_turned_as_its_exif_data_say() -> None:
    image = Image.new("RGB", (3, 2))
    image.getexif()[0x112] = 6
    with image_files(image) as (file,), Image.open(file) as read:
        assert read.size == (2, 3)


def test_a_mode_that_png_does_not_hold_is_named() -> None:
    text = r"^image-1: cannot write mode CMYK as PNG\. Give it in mode RGB: image\.convert\('RGB'\)\.$"
    with pytest.raises(ImageError, match=text), image_files(Image.new("CMYK", (2, 2))):
        pass


def test_a_full_disk_of_temporary_files_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    text = r"cannot be written to: No space left on device\. Set TMPDIR to another folder\.$"
    with pytest.raises(OutputError, match=text), image_files(Image.new("RGB", (2, 2))):
        pass


def test_statistics_are_known_by_their_file(tmp_path: Path) -> None:
    assert label_of(None) is None
    assert label_of("s.safetensors") == Path("s.safetensors")
    statistics = Statistics(
        layers={}, inputs={}, outputs={}, gradients={}, output_values=1.0, output_energy=1.0,
        origin=Origin(
            tuned="", images="", count=1, schedule=(), probes=1, size=None, seed=0, dense_up_to=8, sketch_rank=2,
            dtype="fp32",
        ),
    )  # fmt: skip
    assert label_of(statistics) == Path("statistics")
    assert label_of(replace(statistics, path=tmp_path / "s.safetensors")) == tmp_path / "s.safetensors"


def test_one_lora_is_a_list_of_one_and_an_adapter_is_taken_as_it_is() -> None:
    adapter = Adapter({}, {}, path=Path("x.safetensors"))
    assert listed(adapter) == [adapter]
    assert listed("x.safetensors") == [Path("x.safetensors")]
    assert listed([adapter, "y.safetensors"]) == [adapter, Path("y.safetensors")]
    base = open_checkpoint({"weight": torch.ones(1)}).component()
    assert adapter_of(adapter, "auto", base) is adapter
    assert path_of(adapter, "LoRA") == path_of("x.safetensors", "LoRA") == Path("x.safetensors")
    assert path_of(Adapter({}, {}), "LoRA 2") == Path("LoRA 2")
