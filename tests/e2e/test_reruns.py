"""Commands that are run again in the same folder."""

from pathlib import Path

import pytest
from PIL import Image

from lbm_lora import bundled
from lbm_lora.cli.main import main

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_compress_again_with_another_size(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted(bundled.PAIRS.glob("*.source.png"))[:2]:
        Image.open(path).convert("RGB").resize((64, 64)).save(images / path.name)
    sizes: list[int] = []
    for size in ("300KB", "200KB"):
        paths = {"backbone_signature": bundled.BACKBONE, "images": images, "output": tmp_path / "out"}
        options = [text for name, path in paths.items() for text in (f"--{name}", str(path))]
        assert main(["compress", str(bundled.TUNED), *options, "--count", "1", "--size", size, "--name", "mini"]) == 0
        sizes.append((tmp_path / "out/mini_lora.safetensors").stat().st_size)
    assert 200_000 < sizes[0] <= 300_000
    assert sizes[1] <= 200_000
