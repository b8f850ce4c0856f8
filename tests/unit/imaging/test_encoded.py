"""Images and masks out of bytes: what `imaging` reads from the same files, and sizes from headers alone."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from lbm_lora.imaging.encoded import decode_image, decode_mask, encoded_size
from lbm_lora.imaging.image_file import read_image
from lbm_lora.imaging.masks import read_mask

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8))
GREY = Image.fromarray(np.linspace(0, 65535, 40 * 64).reshape(40, 64).astype(np.uint16))


def saved(image: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def exchanged() -> bytes:
    """The colour profile of a device whose red is sRGB's blue."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for one, other in ((b"rXYZ", b"bXYZ"), ("sRGB".encode("utf-16-be"), "xBGR".encode("utf-16-be"))):
        profile = profile.replace(one, b"\0" * len(one)).replace(other, one).replace(b"\0" * len(one), other)
    return profile


def clear() -> Image.Image:
    image = NOISE.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(NOISE.size))
    return image


CASES = {
    "rgb.png": saved(NOISE),
    "rgb.jpg": saved(NOISE, "JPEG"),
    "turned.jpg": saved(NOISE, "JPEG", exif=turned()),
    "turned.png": saved(NOISE, exif=turned()),
    "grey.png": saved(GREY),
    "clear.png": saved(clear()),
    "palette.gif": saved(NOISE, "GIF"),
    "webp.webp": saved(NOISE, "WEBP", lossless=True),
    "profile.png": saved(NOISE, icc_profile=exchanged()),
}


@pytest.mark.filterwarnings("ignore::lbm_lora.progress.LbmLoraWarning")
@pytest.mark.parametrize("name", CASES)
def test_bytes_are_read_as_the_file_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(CASES[name])
    expected = read_image(tmp_path / name)
    image = decode_image(CASES[name], name)
    assert image.mode == "RGB"
    assert image.size == expected.size
    assert image.tobytes() == expected.tobytes()
    assert encoded_size(CASES[name]) == expected.size
    if name == "profile.png":  # the colours of the image, not the numbers of its file
        assert np.abs(np.asarray(image).astype(int) - np.asarray(NOISE)[:, :, ::-1]).mean() < 8


MASKS = {
    "l.png": saved(Image.linear_gradient("L")),
    "rgb.png": saved(NOISE),
    "alpha.png": saved(clear()),
    "opaque.png": saved(NOISE.convert("RGBA")),
    "wide.png": saved(GREY),
}


@pytest.mark.filterwarnings("ignore:images with 16 bits")
@pytest.mark.parametrize("name", MASKS)
def test_masks_are_read_as_their_files_are(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(MASKS[name])
    mask = decode_mask(MASKS[name], name)
    assert mask.mode == "L"
    assert mask.tobytes() == read_mask(tmp_path / name, mask.size).tobytes()
