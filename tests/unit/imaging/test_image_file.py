"""Reading any image as upright 8-bit RGB, and writing complete files that say who made them."""

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from lbm_lora.errors import ImageError, OutputError
from lbm_lora.files import is_ours
from lbm_lora.imaging.image_file import (
    RESULT,
    read_image,
    writable_extensions,
    write_image,
)
from lbm_lora.progress import LbmLoraWarning


@pytest.fixture
def photo() -> Image.Image:
    """Smooth 40x24 colours with a red left edge, so that turning it shows."""
    ramp = np.linspace(0, 255, 40)[None, :, None] * np.ones((24, 1, 3))
    ramp[:, :, 1] = np.linspace(30, 220, 24)[:, None]
    ramp[:, :3] = (255, 0, 0)
    return Image.fromarray(ramp.round().astype(np.uint8))


def values(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("extension", [".png", ".bmp", ".tif", ".PNG"])
def test_lossless_formats_come_back_exactly(tmp_path: Path, photo: Image.Image, extension: str) -> None:
    write_image(photo, tmp_path / f"a{extension}", mark=RESULT)
    assert np.array_equal(values(read_image(tmp_path / f"a{extension}")), values(photo))


def test_orientation_of_a_camera_is_undone(tmp_path: Path, photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    photo.save(tmp_path / "a.png", exif=exif)
    upright = read_image(tmp_path / "a.png")
    assert upright.size == (24, 40)
    assert upright.getpixel((12, 0)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_parts_become_white_and_it_is_said(tmp_path: Path, photo: Image.Image, mode: str) -> None:
    layered = photo.convert("RGBA")
    layered.putalpha(Image.fromarray(np.repeat([[0] * 20 + [255] * 20], 24, axis=0).astype(np.uint8)))
    path = tmp_path / "a.tif" if mode == "PA" else tmp_path / "a.png"
    layered = layered if mode == "PA" else layered.convert(mode)
    layered.save(path)
    with pytest.warns(LbmLoraWarning, match="partly transparent"):
        read = read_image(path)
    assert read.getpixel((5, 5)) == (255, 255, 255)
    assert read.getpixel((30, 5)) != (255, 255, 255)


SIXTEEN = pytest.mark.filterwarnings("ignore:images with 16 bits")


@SIXTEEN
def test_sixteen_bit_grey_whose_zero_is_white_is_no_negative(tmp_path: Path) -> None:
    wide = np.array([[0, 55 * 257, 65535]], dtype=np.uint16)
    Image.fromarray(wide).save(tmp_path / "a.tif", tiffinfo={262: 0})
    # Pillow's writer may invert them itself, so the file is made sure of
    file = (tmp_path / "a.tif").read_bytes()
    assert wide.tobytes() in file
    assert values(read_image(tmp_path / "a.tif"))[0, :, 0].tolist() == [255, 200, 0]


def test_twelve_bit_grey_keeps_its_range(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((1, 4), dtype=np.uint8)).save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as opened:
        place = opened.tag_v2[273][0]  # pyright: ignore[reportAttributeAccessIssue]
    file = bytearray((tmp_path / "a.tif").read_bytes())
    bits = file.index(struct.pack("<HHI", 258, 3, 1)) + 8
    file[bits] = 12
    file[place : place + 6] = bytes([0x00, 0x0F, 0xFF, 0x80, 0x0F, 0xFF])  # 0, 4095, 2048, 4095, packed
    (tmp_path / "a.tif").write_bytes(file.ljust(place + 6, b"\0"))
    assert values(read_image(tmp_path / "a.tif"))[0, :, 0].tolist() == [0, 255, 128, 255]


def test_a_colour_profile_is_applied(tmp_path: Path) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.new("RGB", (12, 12), (200, 60, 90))
    image.save(tmp_path / "srgb.png", icc_profile=srgb)
    assert read_image(tmp_path / "srgb.png").getpixel((0, 0)) == (200, 60, 90)
    transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    in_lab = ImageCms.applyTransform(image, transform)
    assert in_lab is not None
    in_lab.save(tmp_path / "lab.tif", icc_profile=lab)
    with pytest.warns(LbmLoraWarning, match="the colours are taken as sRGB"):
        read = read_image(tmp_path / "lab.tif")
    assert np.abs(values(read) - (200, 60, 90)).max() <= 3


def test_bad_files_are_named(tmp_path: Path, photo: Image.Image) -> None:
    with pytest.raises(ImageError, match=r"none\.png does not exist\. The folder .*\.$"):
        read_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(ImageError, match=r"text\.png is not an image in a supported format"):
        read_image(tmp_path / "text.png")
    Image.effect_noise((64, 64), 80).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:900])
    with pytest.raises(ImageError, match=r"cut\.png cannot be decoded: .* Is the file complete\?"):
        read_image(tmp_path / "cut.png")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n0 0 20 20 rectfill\nshowpage\n%%EOF\n"


def test_postscript_is_never_run_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was called"))
    for name in ("a.png", "a.eps", "a.jpg"):
        (tmp_path / name).write_bytes(EPS)
        with pytest.raises(ImageError, match=rf"{name} is not an image in a supported format"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("extension", sorted(writable_extensions()))
def test_every_image_says_who_made_it(tmp_path: Path, extension: str) -> None:
    """A noisy one, so that the mark is far from one of its ends."""
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    path, mark = tmp_path / f"a{extension}", "made by lbm-lora: a test"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LbmLoraWarning)  # of a GIF's colours
        write_image(Image.fromarray(noise), path, mark=mark)
    assert is_ours(path)
    assert read_image(path).size == (400, 400)


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path: Path, photo: Image.Image) -> None:
    path = tmp_path / "a.png"
    write_image(photo, path, mark=RESULT)
    before = path.read_bytes()
    with pytest.raises(OutputError, match=r"a\.png cannot be written"):
        write_image(Image.new("F", (4, 4)), path, mark=RESULT)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
