"""What the end-to-end tests share: the bundled mini model, and its files at the documented paths."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from lbm_lora import bundled
from nano import base_bf16, base_fp32, config, pairs, predict

__all__ = ["base_bf16", "base_fp32", "config", "pairs", "predict"]

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def documented_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the documented commands expect it, with the mini model in place of the published one."""
    folder = tmp_path_factory.mktemp("documented")
    relighting = folder / "examples/inference/ckpts/relighting"
    shutil.copytree(bundled.TUNED, relighting)
    shutil.copytree(bundled.BACKBONE, relighting.parent / "backbone")
    (relighting / "assets").mkdir()
    source = sorted(bundled.PAIRS.glob("*.source.png"))[0]
    Image.open(source).convert("RGB").save(relighting / "assets/source_image.jpg", quality=95)
    shutil.copytree(REPOSITORY / "lora", folder / "lora", ignore=shutil.ignore_patterns("checkpoints", "__pycache__"))
    return folder
