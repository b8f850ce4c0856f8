"""What `validate --images` measures of the models."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from two_levels import translate

from lbm_lora.adapter import Adapter
from lbm_lora.apply import ScaledAdapter, fuse_module
from lbm_lora.fidelity import comparison
from lbm_lora.fidelity.comparison import ComparisonSettings, compare_outputs, plan_comparison
from lbm_lora.fidelity.output_errors import relative_error
from lbm_lora.imaging.buckets import to_bucket
from lbm_lora.imaging.image_file import read_image
from lbm_lora.imaging.metrics import psnr
from lbm_lora.model.build import load_model
from lbm_lora.verbs.extract import extract
from standins import Lbm

LORA = "base + LoRA"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of noise, one dark and flat."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (96, 128, 3), dtype=np.uint8)).save(folder / "loud.png")
    Image.fromarray(random.integers(20, 40, (64, 64, 3), dtype=np.uint8)).save(folder / "quiet.png")
    return folder


@pytest.fixture(scope="module")
def adapters(lbm: Lbm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Adapter]:
    """A good LoRA and a poor one."""
    folder = tmp_path_factory.mktemp("loras")
    found = {}
    for name, rank in ((LORA, 8), ("poor", 1)):
        path = folder / f"rank{rank}.safetensors"
        found[name] = extract(lbm.base, lbm.tuned, save_to=path, rank=rank, conv_rank=rank)
    return found


@pytest.fixture(scope="module")
def settings(photos: Path) -> ComparisonSettings:
    return ComparisonSettings(images=str(photos), steps=(1, 2), seed=5, size=64)


@pytest.fixture(scope="module")
def compared(lbm: Lbm, adapters: Mapping[str, Adapter], settings: ComparisonSettings) -> comparison.ComparisonResult:
    """Both LoRAs on both images."""
    return compare_outputs(plan_comparison(settings), base=lbm.base, tuned=lbm.tuned, adapters=adapters)


def test_the_numbers_are_those_of_the_images(
    compared: comparison.ComparisonResult, lbm: Lbm, adapters: Mapping[str, Adapter], photos: Path
) -> None:
    models = {name: load_model(path, dtype=torch.float32) for name, path in (("base", lbm.base), ("tuned", lbm.tuned))}
    models["poor"] = load_model(lbm.base, dtype=torch.float32)
    fuse_module(models["poor"].denoiser, [ScaledAdapter(adapters["poor"])])
    scores = compared.scores
    assert [image.image for image in scores.images] == ["loud.png", "quiet.png"]
    for image in scores.images:
        source = to_bucket(read_image(photos / image.image), 64, step=8)
        wanted = {steps: translate(models["tuned"], source, steps=steps, seed=5)[0] for steps in (1, 2)}
        latent = models["tuned"].encode(source)
        first = {n: m.denoise(latent, torch.tensor([1000.0])) for n, m in models.items()}
        for variant in image.scores:
            if variant.variant == LORA:
                continue
            for score in variant.images:
                found = translate(models[variant.variant], source, steps=score.steps, seed=5)[0]
                assert float(score.psnr) == pytest.approx(psnr(found, wanted[score.steps]), abs=1e-3)
            expected = relative_error(first[variant.variant], first["tuned"])
            assert float(variant.denoiser[0].error) == pytest.approx(expected, rel=1e-4)


def test_the_image_shows_the_worst_first(compared: comparison.ComparisonResult) -> None:
    lowest = {
        image.image: min(float(score.psnr) for score in image.scores[1].images) for image in compared.scores.images
    }
    order = sorted(lowest, key=lambda name: lowest[name])
    assert [one.image for one in compared.shown] == order
    image = Image.open(io.BytesIO(compared.image))
    image.load()
    # five columns of 64 pixels, shown four times as large
    assert image.width > 5 * 256
    assert 2 * 256 < image.height < 3 * 256
