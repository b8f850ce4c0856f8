"""The pipeline that needs diffusers alone: walking the bridge, tiles, and images of every kind, in and out."""

import ast
import inspect
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor

from lbm_lora.imaging import buckets
from lbm_lora.imaging.tensors import to_images, to_tensor
from lbm_lora.model import bridge_pipeline
from lbm_lora.model.bridge_pipeline import (
    LatentBridgePipeline,
    adjust_to_source,
    follow_bridge,
    images_of,
    masks_of,
)
from lbm_lora.model.build import load_model
from standins import TINY, write_base


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> LatentBridgePipeline:
    """A TINY stand-in in fp32, with enough bridge noise to see it."""
    folder = tmp_path_factory.mktemp("model")
    write_base(folder, TINY, dtype=torch.float32, bridge_noise_sigma=0.5)
    model = load_model(folder, dtype=torch.float32)
    made = LatentBridgePipeline(model.denoiser, model.vae, FlowMatchEulerDiscreteScheduler(), 0.5, [1, 2, 4])
    made.set_progress_bar_config(disable=True)
    return made


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def latents(*values: float) -> torch.Tensor:
    """One sample per value, of shape [n, 1, 1, 1]."""
    return torch.tensor(values).reshape(-1, 1, 1, 1)


def flow_match_scheduler(steps: int) -> Any:
    """diffusers' scheduler, driven as LBM drives it."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps).tolist())
    return scheduler


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_it_stands_alone() -> None:
    """The copy in a folder must run where nothing but diffusers and its own requirements is installed."""
    tree = ast.parse(inspect.getsource(bridge_pipeline))
    found = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    found |= {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    packages = {str(name).split(".")[0] for name in found} - set(sys.stdlib_module_names)
    assert packages == {"numpy", "PIL", "torch", "diffusers"}


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 20])
def test_the_timesteps_are_those_of_lbm(steps: int) -> None:
    seen: list[float] = []
    follow_bridge(lambda z, t: seen.append(t.item()) or z, latents(1.0), steps, 0.1, seeded(0))
    assert seen == flow_match_scheduler(steps).timesteps.tolist()
    assert seen == pytest.approx([1000 * (steps - index) / steps for index in range(steps)], rel=1e-6)


def drift(latent: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return torch.tanh(latent) + timestep.reshape(-1, 1, 1, 1) / 1000


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_the_walk_equals_the_flow_match_scheduler(steps: int) -> None:
    """The loop as LBM drives the scheduler, with the noise of the same generator added after each inner step."""
    source = torch.randn(1, 4, 3, 3, generator=seeded(3))
    scheduler = flow_match_scheduler(steps)
    generator, latent = seeded(5), source
    for index, timestep in enumerate(scheduler.timesteps):
        latent = scheduler.step(drift(latent, timestep[None]), timestep, latent, return_dict=False)[0]
        if index < steps - 1:
            sigma = scheduler.sigmas[index + 1]
            latent = latent + 0.05 * (sigma * (1 - sigma)) ** 0.5 * torch.randn(latent.shape[1:], generator=generator)
    found = follow_bridge(drift, source, steps, 0.05, [seeded(5)])
    torch.testing.assert_close(found, latent, rtol=0, atol=1e-6)


def test_noise_of_a_sample_does_not_depend_on_the_batch() -> None:
    source = torch.randn(3, 4, 3, 3, generator=seeded(4))
    together = follow_bridge(drift, source, 4, 0.5, seeded(7))
    shorter = follow_bridge(drift, source[:2], 4, 0.5, seeded(7))
    assert torch.equal(together[:2], shorter)

    together = follow_bridge(drift, source, 4, 0.5, [seeded(i) for i in range(3)])
    alone = follow_bridge(drift, source[2:], 4, 0.5, [seeded(2)])
    assert torch.equal(together[2:], alone)
    assert not torch.equal(together, follow_bridge(drift, source, 4, 0.5, seeded(8)))


def test_one_step_by_hand(pipe: Any) -> None:
    photo = noise(128, 128)
    with torch.no_grad():
        source = pipe.vae.encode(to_tensor([photo])).latent_dist.mean * 0.13025
        target = source - pipe.unet(source, 1000.0, encoder_hidden_states=None).sample
        decoded = pipe.vae.decode(target / 0.13025).sample
    found = pipe(photo, output_type="pt").images
    torch.testing.assert_close(found, (decoded.clamp(-1, 1) + 1) / 2, rtol=0, atol=1e-5)
    assert np.array_equal(pixels(pipe(photo).images[0]), pixels(to_images(found * 2 - 1)[0]))


def by_hand(pipe: LatentBridgePipeline, photo: Image.Image, steps: int, seed: int, *, sampled: bool) -> Image.Image:
    """The picture by plain arithmetic, in the order and precision that every published number was made in."""
    size = buckets.nearest_bucket(photo.width, photo.height, 64, step=8)
    with torch.no_grad():
        posterior = pipe.vae.encode(to_tensor([photo.resize(size, Image.Resampling.LANCZOS)])).latent_dist
        latent = posterior.mean.float()
        if sampled:
            latent = latent + posterior.std.float() * torch.randn(latent.shape[1:], generator=seeded(seed ^ 0x705))
        latent, draw = latent * pipe.vae.config["scaling_factor"], seeded(seed)
        levels = [*torch.linspace(1.0, 1.0 / steps, steps, dtype=torch.float64).float().tolist(), 0.0]
        for sigma, after in pairwise(levels):
            prediction = pipe.unet(latent, torch.tensor([sigma * 1000]), encoder_hidden_states=None).sample
            latent = latent + (after - sigma) * prediction
            if after > 0:
                latent = latent + 0.5 * (after * (1 - after)) ** 0.5 * torch.randn(latent.shape[1:], generator=draw)
        decoded = pipe.vae.decode(latent / pipe.vae.config["scaling_factor"]).sample
    return to_images(decoded)[0].resize(photo.size, Image.Resampling.LANCZOS)


@pytest.mark.parametrize(("steps", "sampled"), [(1, False), (2, True), (3, False), (4, True)])
def test_pictures_stay_what_they_were_byte_for_byte(pipe: LatentBridgePipeline, steps: int, sampled: bool) -> None:
    photo = noise(83, 50)
    found = pipe(photo, None, steps, seed=5, size=64, sample_posterior=sampled).images[0]
    assert found.tobytes() == by_hand(pipe, photo, steps, 5, sampled=sampled).tobytes()


@pytest.mark.parametrize("sample_posterior", [False, True])
def test_a_result_does_not_depend_on_its_neighbours(pipe: LatentBridgePipeline, sample_posterior: bool) -> None:
    photos = [noise(83, 50), noise(40, 60, 1), noise(83, 50, 2)]
    options: dict[str, Any] = {"size": 64, "num_inference_steps": 2}
    together = pipe(photos, seed=5, sample_posterior=sample_posterior, **options).images
    assert [image.size for image in together] == [photo.size for photo in photos]
    for photo, image in zip(photos, together, strict=True):
        alone = pipe(photo, seed=5, sample_posterior=sample_posterior, **options).images[0]
        assert np.array_equal(pixels(image), pixels(alone))


def test_a_batch_is_one_pass_of_the_networks(pipe: Any) -> None:
    photos, shapes = [noise(64, 64, seed) for seed in range(3)], list[int]()

    def callback(_pipe: Any, _step: int, _timestep: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
        shapes.append(len(given["latents"]))
        return given

    alone = pipe(photos, size=64, output_type="np", num_inference_steps=2).images
    together = pipe(
        photos, size=64, output_type="np", num_inference_steps=2, batch_size=2, callback_on_step_end=callback
    ).images
    assert shapes == [2, 2, 1, 1]
    assert together.shape == (3, 64, 64, 3)
    assert np.abs(alone - together).max() < 1e-3


def test_the_seed_decides_all_noise_and_leaves_the_global_state_alone(pipe: LatentBridgePipeline) -> None:
    before = torch.random.get_rng_state()

    def made(steps: int = 1, **options: Any) -> Any:
        return pipe(noise(64, 64), size=64, num_inference_steps=steps, output_type="latent", **options).images

    assert torch.equal(made(2), made(2, seed=0))
    assert not torch.equal(made(2), made(2, seed=1))
    assert torch.equal(made(1), made(1, seed=1))
    assert torch.equal(made(sample_posterior=True, seed=1), made(sample_posterior=True, seed=1))
    assert not torch.equal(made(sample_posterior=True, seed=1), made(sample_posterior=True, seed=2))
    assert not torch.equal(made(sample_posterior=True), made())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_kind_of_image_gives_one_result(pipe: LatentBridgePipeline) -> None:
    photo = noise(64, 64)
    array = np.asarray(photo)
    wanted = pixels(pipe(photo, size=64).images[0])
    exact = [array, torch.from_numpy(array.copy()).permute(2, 0, 1), [photo], array[None]]
    for given in exact:
        assert np.array_equal(pixels(pipe(given, size=64).images[0]), wanted)
    for given in (array / 255, torch.from_numpy(array / 255.0).permute(2, 0, 1)[None]):
        assert np.abs(pixels(pipe(given, size=64).images[0]) - wanted).max() <= 1


def test_every_kind_of_output_is_one_result_in_the_size_of_the_image(pipe: Any) -> None:
    photo = noise(90, 64)
    pil = pipe(photo, size=64).images[0]
    array, tensor = (pipe(photo, size=64, output_type=kind).images for kind in ("np", "pt"))
    assert array.shape == (1, 64, 90, 3)
    assert np.array_equal(array[0], tensor[0].permute(1, 2, 0).numpy())
    assert np.abs(array[0] * 255 - pixels(pil)).mean() < 3  # two ways of stretching
    (only,) = pipe(photo, size=64, output_type="latent", return_dict=False)
    assert only.shape == (1, 4, 7, 9)
    with pytest.raises(ValueError, match="output_type='np' needs one size"):
        pipe([photo, noise(64, 64)], output_type="np")


def test_a_mask_keeps_the_image_where_it_is_black(pipe: Any) -> None:
    photo, mask = noise(83, 50), Image.new("L", (83, 50), 0)
    mask.paste(255, (40, 0, 83, 50))
    whole = pixels(pipe(photo, size=64).images[0])
    floats = np.asarray(mask, dtype=np.float32) / 255
    for given in (
        mask,
        [mask],
        np.asarray(mask),
        floats,
        torch.from_numpy(floats)[None, None],
        mask.resize((166, 100)),
    ):
        pasted = pixels(pipe(photo, given, size=64).images[0])
        assert np.array_equal(pasted[:, :39], pixels(photo)[:, :39])
        assert np.array_equal(pasted[:, 41:], whole[:, 41:])
    array = pipe(photo, mask, size=64, output_type="np").images[0]
    assert np.abs(array[:, :40] * 255 - pixels(photo)[:, :40]).max() < 1e-3


def unit(seed: int, height: int = 40, width: int = 48) -> Tensor:
    return torch.rand(3, height, width, generator=seeded(seed))


def test_detail_is_the_sources_and_light_the_results() -> None:
    source = 0.5 + 0.2 * (unit(1, 64, 64)[:1].expand(3, 64, 64) - 0.5)
    light = torch.linspace(0.3, 0.6, 64).expand(3, 64, 64)
    made = adjust_to_source(light, source, keep_detail=1.0)
    assert torch.allclose(made.mean(-2), light.mean(-2), atol=0.04)
    inner = (slice(None), slice(8, -8), slice(8, -8))
    detail, before = (made - light)[inner].mean(0).flatten(), source[inner].mean(0).flatten()
    assert float(torch.corrcoef(torch.stack([detail, before]))[0, 1]) > 0.9
    half = adjust_to_source(light, source, keep_detail=0.5)
    assert torch.allclose(half - light, (made - light) / 2, atol=1e-6)


def test_a_callback_sees_each_step_and_can_change_it(pipe: Any) -> None:
    seen: list[tuple[int, float]] = []

    def callback(given_pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert given_pipe is pipe
        seen.append((step, float(timestep)))
        return {"latents": tensors["latents"] * 0}

    made = pipe(noise(64, 64), None, 4, size=64, callback_on_step_end=callback, output_type="latent").images
    assert seen == [(0, 1000.0), (1, 750.0), (2, 500.0), (3, 250.0)]
    assert not made.any()


def test_an_interrupted_call_ends_with_what_is_there(pipe: LatentBridgePipeline) -> None:
    steps: list[int] = []

    def callback(given_pipe: Any, step: int, _timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.append(step)
        given_pipe._interrupt = len(steps) == 3
        return tensors

    photos = [noise(64, 64, seed) for seed in range(3)]
    assert len(pipe(photos, None, 2, size=64, callback_on_step_end=callback).images) == 2
    assert steps == [0, 1, 0]
    assert len(pipe(photos, size=64).images) == 3


@pytest.mark.parametrize(
    ("change", "tiled"),
    [
        (lambda pipe: None, None),
        (LatentBridgePipeline.enable_vae_tiling, True),
        (LatentBridgePipeline.disable_vae_tiling, False),
    ],
)
def test_tiles_are_asked_for(
    pipe: LatentBridgePipeline, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None], tiled: bool | None
) -> None:
    asked: list[bool | None] = []
    decode = bridge_pipeline.decode_latents

    def recording(vae: Any, latents: Tensor, *, tiled: bool | None) -> Tensor:
        asked.append(tiled)
        return decode(vae, latents, tiled=tiled)

    monkeypatch.setattr(bridge_pipeline, "decode_latents", recording)
    change(pipe)
    pipe(noise(64, 64), size=64)
    pipe.tiled = None
    assert asked == [tiled]


def test_the_vae_is_upcast_where_fp16_would_overflow(tmp_path: Path) -> None:
    write_base(tmp_path, TINY, dtype=torch.float32)
    model = load_model(tmp_path, dtype=torch.float16)
    pipe = LatentBridgePipeline(model.denoiser, model.vae.half(), FlowMatchEulerDiscreteScheduler())
    pipe.set_progress_bar_config(disable=True)
    pipe(noise(64, 64), size=64)
    assert (pipe.unet.dtype, pipe.vae.dtype) == (torch.float16, torch.float32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1, got 0."),
        ({"image": []}, "image is an empty list. Give at least one image."),
        (
            {"mask": np.zeros((64, 64))},
            "a mask is black everywhere, so nothing would change. White marks the pixels to take.",
        ),
        ({"output_type": "png"}, "output_type must be pil, np, pt or latent, got 'png'."),
        ({"mask": [Image.new("L", (64, 64))] * 2}, "2 masks for 1 images: give one for all, or one for each."),
    ],
)
def test_arguments_that_cannot_be(pipe: LatentBridgePipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        pipe(**cast(dict[str, Any], {"image": noise(64, 64)}) | options)
    assert str(caught.value) == message


def test_paths_are_opened_upright_and_only_as_what_pillow_decodes_itself(tmp_path: Path) -> None:
    upright = noise(48, 32)
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 270 degrees
    turned.save(tmp_path / "a.png", exif=exif)
    (opened,) = images_of(tmp_path / "a.png")
    assert isinstance(opened, Image.Image)
    assert opened.tobytes() == upright.tobytes()
    (mask,) = masks_of(str(tmp_path / "a.png"), [upright])
    assert mask is not None
    assert (mask.mode, mask.size) == ("L", upright.size)
    (tmp_path / "b.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    with pytest.raises(OSError, match="cannot identify image file"):
        list(images_of([tmp_path / "b.png"]))
