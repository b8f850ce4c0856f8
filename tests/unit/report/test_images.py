"""The images of a page: what is embedded, and within which limit."""

import base64
from collections.abc import Callable

import pytest

from lbm_lora.errors import ImageError
from lbm_lora.report import ImageSet
from lbm_lora.report import images as images_module
from lbm_lora.report.images import embedded

Sets = Callable[..., ImageSet]


def test_the_bytes_are_in_the_uris(build_set: Sets) -> None:
    jpeg = b"\xff\xd8\xff and so on"
    (shown,), left_out = embedded([build_set("cup.png", views={"source": jpeg}, psnrs={})])
    assert left_out == []
    assert [(view.name, view.is_difference, view.psnr) for view in shown.views] == [
        ("source", False, None),
        ("difference", True, None),
    ]
    assert shown.views[0].uri == f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def test_a_set_that_does_not_fit_is_left_out_as_one(build_set: Sets, monkeypatch: pytest.MonkeyPatch) -> None:
    small = build_set("small.png")
    large = build_set("large.png", difference=small.difference * 9)
    monkeypatch.setattr(images_module, "IMAGES_NBYTES", 10 * len(small.difference))
    shown, left_out = embedded([small, large, build_set("another.png")])
    assert [one.image for one in shown] == ["small.png", "another.png"]
    assert left_out == ["large.png"]


def test_other_formats_are_refused(build_set: Sets) -> None:
    message = r"^image 'source' of cup\.png in the report is not a PNG, JPEG or WebP file\.$"
    with pytest.raises(ImageError, match=message):
        embedded([build_set("cup.png", views={"source": b"GIF89a"})])
