"""What `validate --images` measures of the models."""

import gc
import io
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from two_levels import translate

from lbm_lora.adapter import Adapter
from lbm_lora.apply import ScaledAdapter, fuse_module
from lbm_lora.errors import CheckpointError, ConfigError, ImageError
from lbm_lora.fidelity import comparison
from lbm_lora.fidelity.comparison import ComparisonSettings, compare_outputs, plan_comparison
from lbm_lora.fidelity.output_errors import relative_error
from lbm_lora.imaging import perceptual
from lbm_lora.imaging.buckets import to_bucket
from lbm_lora.imaging.image_file import read_image
from lbm_lora.imaging.metrics import psnr
from lbm_lora.imaging.perceptual import load_lpips
from lbm_lora.model.build import LBMModel, load_model
from lbm_lora.progress import LbmLoraWarning
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


def test_the_better_lora_is_better_everywhere(compared: comparison.ComparisonResult) -> None:
    scores = compared.scores
    assert (scores.reference, scores.steps, scores.timesteps) == ("tuned", (1, 2), (1000, 750, 500, 250))
    assert (scores.dtype, scores.device, scores.seed, scores.lpips) == ("fp32", "cpu", 5, None)
    for image in scores.images:
        base, good, poor = image.scores
        assert (base.variant, good.variant, poor.variant) == ("base", LORA, "poor")
        for one, other, third in zip(good.images, poor.images, base.images, strict=True):
            assert float(one.psnr) > float(other.psnr) > float(third.psnr)
        for one, other, third in zip(good.denoiser, poor.denoiser, base.denoiser, strict=True):
            assert float(one.error) < float(other.error) < float(third.error)


def test_the_files_behind_the_variants(compared: comparison.ComparisonResult, adapters: Mapping[str, Adapter]) -> None:
    good, poor = compared.scores.loras
    assert (good.variant, good.file, good.method) == (LORA, "rank8.safetensors", "plain")
    assert (poor.variant, poor.file) == ("poor", "rank1.safetensors")
    path = adapters["poor"].path
    assert path is not None
    assert poor.nbytes == path.stat().st_size < good.nbytes


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


def test_a_result_does_not_depend_on_the_other_images(
    compared: comparison.ComparisonResult, lbm: Lbm, settings: ComparisonSettings, photos: Path
) -> None:
    alone = plan_comparison(replace(settings, images=str(photos / "quiet.png"), steps=(2,)))
    found = compare_outputs(alone, base=lbm.base, tuned=lbm.tuned, adapters={}).scores
    (image,) = found.images
    (base,) = image.scores
    assert base.images[0] == compared.scores.images[1].scores[0].images[1]
    assert base.denoiser == compared.scores.images[1].scores[0].denoiser
    assert found.loras == ()


@pytest.mark.slow
def test_one_model_is_in_memory_at_a_time(
    lbm: Lbm, adapters: Mapping[str, Adapter], settings: ComparisonSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[torch.nn.Module]] = []

    def load(*arguments: object, **more: object) -> LBMModel:
        gc.collect()
        assert not [model for model in loaded if model() is not None]
        model = load_model(*arguments, **more)  # type: ignore[arg-type]
        loaded.append(weakref.ref(model.denoiser))
        return model

    monkeypatch.setattr(comparison, "load_model", load)
    plan = plan_comparison(replace(settings, steps=(1,)))
    compare_outputs(plan, base=lbm.base, tuned=lbm.tuned, adapters=adapters)
    assert len(loaded) == 4


def test_the_steps_are_those_that_were_trained(lbm: Lbm, settings: ComparisonSettings, photos: Path) -> None:
    plan = plan_comparison(replace(settings, images=str(photos / "quiet.png"), steps=()))
    assert compare_outputs(plan, base=lbm.base, tuned=lbm.tuned, adapters={}).scores.steps == (1, 2, 4)


def test_other_steps_are_warned_of(lbm: Lbm, settings: ComparisonSettings, photos: Path) -> None:
    plan = plan_comparison(replace(settings, images=str(photos / "quiet.png"), steps=(3, 1, 3)))
    with pytest.warns(LbmLoraWarning, match=r"^3 steps call the denoiser at untrained timesteps\."):
        scores = compare_outputs(plan, base=lbm.base, tuned=lbm.tuned, adapters={}).scores
    assert scores.steps == (1, 3)


@pytest.fixture
def squeeze(tmp_path: Path) -> Path:
    """Random weights of the smallest network."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: tensor.shape for name, tensor in perceptual._empty("squeeze").state_dict().items()}
    weights = {f"features.{name}": 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(weights, tmp_path / "squeeze.safetensors")
    return tmp_path / "squeeze.safetensors"


def test_lpips_by_the_network_of_the_file(lbm: Lbm, settings: ComparisonSettings, photos: Path, squeeze: Path) -> None:
    plan = plan_comparison(replace(settings, images=str(photos / "loud.png"), steps=(1,), lpips_weights=squeeze))
    scores = compare_outputs(plan, base=lbm.base, tuned=lbm.tuned, adapters={}).scores
    assert scores.lpips == "squeeze"
    models = [load_model(path, dtype=torch.float32) for path in (lbm.base, lbm.tuned)]
    source = to_bucket(read_image(photos / "loud.png"), 64, step=8)
    images = [translate(model, source, seed=5) for model in models]
    expected = float(load_lpips("squeeze", squeeze)(*images))
    assert expected > 0
    assert float(scores.images[0].scores[0].images[0].lpips or 0) == pytest.approx(expected, rel=1e-3)
    assert scores.summary[0].worst_lpips == scores.images[0].scores[0].images[0].lpips


def test_bad_input_is_found_while_planning(settings: ComparisonSettings, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^steps must be 1 or more, got 0\.$"):
        plan_comparison(replace(settings, steps=(1, 0)))
    broken = tmp_path / "broken.png"
    broken.write_bytes((photos / "loud.png").read_bytes()[:500])
    with pytest.raises(ImageError, match=r"broken\.png"):
        plan_comparison(replace(settings, images=str(broken)))
    with pytest.raises(CheckpointError, match=r"gone\.safetensors does not exist"):
        plan_comparison(replace(settings, lpips_weights=tmp_path / "gone.safetensors"))
