"""Images one by one, and side by side."""

import io

from PIL import Image

from lbm_lora.fidelity.shown import ShownImage


def shown(*variants: str) -> ShownImage:
    """Flat images of 300 x 200 pixels, whose colours tell them apart."""
    names = ("source", "base", *variants, "tuned")
    return ShownImage(
        image="cup.png",
        views={name: Image.new("RGB", (300, 200), (10 * place, 0, 0)) for place, name in enumerate(names, 1)},
        psnrs={"base": 12.0},
        variant=(*variants, "base")[0],
        reference="tuned",
        difference=Image.new("RGB", (300, 200), (0, 99, 0)),
    )


def test_images_are_encoded_without_loss() -> None:
    found = shown("base + LoRA", "small").encoded()
    assert (found.width, found.height, found.psnrs) == (300, 200, {"base": 12.0})
    assert list(found.views) == ["source", "base", "base + LoRA", "small", "tuned"]
    colours = [Image.open(io.BytesIO(data)).getpixel((5, 5)) for data in (*found.views.values(), found.difference)]
    assert colours == [(10, 0, 0), (20, 0, 0), (30, 0, 0), (40, 0, 0), (50, 0, 0), (0, 99, 0)]
    assert found.difference_title == "base + LoRA minus tuned, 8 times amplified; grey: no difference"
