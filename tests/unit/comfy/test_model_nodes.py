"""Load, adapt and translate on a tiny model, next to `infer`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfy_standin import Interrupted, Run, State
from PIL import Image
from torch import Tensor

from lbm_lora.comfy.files import as_photos
from lbm_lora.errors import ConfigError, ImageError, WrongBaseError
from lbm_lora.model.pipeline import LBMPipeline


def translated(run: Run, model: Any, vae: Any, image: Tensor, **options: Any) -> Tensor:
    return run("LbmLoraTranslate", model=model, vae=vae, image=image, **options)[0]


def by_pipeline(lists: Path, image: Tensor, scale: float | str | None = 1.0, **options: Any) -> Tensor:
    pipe = LBMPipeline.from_checkpoint(lists / "diffusion_models/base.safetensors", torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if scale is not None:
        pipe.load_lora_weights(lists / "loras/relight.safetensors", "relight")
        pipe.set_adapters("relight", scale)
    made = pipe(image.movedim(-1, 1), output_type="pt", size=64, **options).images
    return torch.as_tensor(made).movedim(1, -1)


@pytest.mark.parametrize(
    ("strength", "blocks", "scale"),
    [pytest.param(1.0, "", 1.0, marks=pytest.mark.slow), (-0.5, "attn1=0.2", "-0.5,attn1=0.2")],
)
def test_images_are_those_of_the_pipeline(
    run: Run, base: tuple[Any, Any], lists: Path, strength: float, blocks: str, scale: float | str
) -> None:
    image = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    model, vae = base
    (adapted,) = run("LbmLoraLoadLora", model=model, lora="relight.safetensors", strength=strength, blocks=blocks)
    made = translated(run, adapted, vae, image, size=64, steps=2, seed=7)
    assert made.shape == image.shape
    assert torch.allclose(made, by_pipeline(lists, image, scale, num_inference_steps=2, seed=7), atol=2e-4)
    plain = translated(run, model, vae, image, size=64)  # the base is as it was
    assert torch.allclose(plain, by_pipeline(lists, image, None), atol=2e-4)
    assert not torch.allclose(plain, made, atol=1e-2)


def test_a_lora_of_another_node_is_applied_as_its_file_is(run: Run, base: tuple[Any, Any], image: Tensor) -> None:
    model, vae = base
    (lora,) = run("LbmLoraOpenLora", lora="relight.safetensors")
    (by_value,) = run("LbmLoraApplyLora", model=model, lora=lora)
    (by_file,) = run("LbmLoraLoadLora", model=model, lora="relight.safetensors")
    assert torch.equal(translated(run, by_value, vae, image), translated(run, by_file, vae, image))


def test_a_mask_keeps_the_image_or_the_background(run: Run, base: tuple[Any, Any], image: Tensor) -> None:
    model, vae = base
    mask = torch.zeros(1, 40, 48)
    mask[:, :, 24:] = 1
    made = translated(run, model, vae, image, mask=mask)
    assert torch.equal(made[:, :, :24], image[:, :, :24])
    assert torch.equal(made[:, :, 24:], translated(run, model, vae, image)[:, :, 24:])
    background = torch.full((1, 20, 24, 3), 0.25)
    on_grey = translated(run, model, vae, image, mask=mask, background=background)
    assert torch.allclose(on_grey[:, :, :24], torch.tensor(0.25), atol=1e-6)
    composed = torch.where(mask[..., None] > 0, image, 0.25)
    assert torch.allclose(on_grey[:, :, 24:], translated(run, model, vae, composed)[:, :, 24:], atol=1e-5)


def test_detail_and_colour_come_from_the_source(run: Run, base: tuple[Any, Any], lists: Path) -> None:
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(2))
    shares = {"keep_detail": 0.5, "match_color": 0.75}
    made = translated(run, *base, image, size=64, **shares)
    assert torch.allclose(made, by_pipeline(lists, image, None, **shares), atol=1e-3)
    for other in ({}, {"keep_detail": 0.5}, {"match_color": 0.75}):
        assert not torch.allclose(made, translated(run, *base, image, size=64, **other), atol=1e-2)


def test_each_step_of_each_image_is_shown(run: Run, base: tuple[Any, Any], comfy: State, image: Tensor) -> None:
    translated(run, *base, image, steps=2)
    assert comfy.previews == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_cancel_stops_within_a_step(run: Run, base: tuple[Any, Any], comfy: State, image: Tensor) -> None:
    model, vae = base
    comfy.interrupted = True
    with pytest.raises(Interrupted):
        translated(run, model, vae, image)
    assert comfy.previews == []


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"size": 32}, ConfigError, "size must be 0 or at least 64, got 32."),
        ({"background": torch.zeros(1, 8, 8, 3)}, ConfigError, "a background needs a mask"),
        ({"mask": torch.zeros(1, 40, 48)}, ImageError, "mask is black everywhere"),
        ({"mask": torch.ones(1, 48, 40)}, ImageError, "mask is 40x48, but its image 48x40: the shapes differ."),
        ({"mask": torch.ones(3, 40, 48)}, ImageError, "mask: 3 for 2 images. Give one for all, or one for each."),
    ],
)
def test_what_does_not_fit_is_said(
    run: Run, base: tuple[Any, Any], image: Tensor, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    model, vae = base
    with pytest.raises(error) as found:
        translated(run, model, vae, image, **options)
    assert says in str(found.value)


def test_another_model_is_refused(run: Run, base: tuple[Any, Any], image: Tensor) -> None:
    from types import SimpleNamespace

    _, vae = base
    with pytest.raises(ConfigError, match="is not an LBM: it holds a Linear"):
        translated(run, SimpleNamespace(model=torch.nn.Linear(1, 1), attachments={}), vae, image)


def test_errors_of_loras_are_one_line_in_the_terms_of_the_node(run: Run, base: tuple[Any, Any]) -> None:
    model, _ = base
    with pytest.raises(Exception, match=r"broken\.safetensors") as broken:
        run("LbmLoraLoadLora", model=model, lora="broken.safetensors")
    with pytest.raises(ConfigError, match=r"'blocks' '1\.0,attn1': 'attn1' has no pattern"):
        run("LbmLoraLoadLora", model=model, lora="relight.safetensors", blocks="attn1")
    tuned, _ = run("LbmLoraLoadModel", checkpoint="tuned.safetensors", precision="fp32")
    with pytest.raises(WrongBaseError, match="is not the base of") as other:
        run("LbmLoraLoadLora", model=tuned, lora="relight.safetensors")
    assert "--allow_other_base (lbm-lora's command line)" in str(other.value)
    for found in (broken, other):
        assert "\n" not in str(found.value)


def test_nodes_run_again_when_a_file_is_written_again(comfy: State, lists: Path) -> None:
    from importlib import import_module

    nodes = import_module("lbm_lora.comfy.extension")
    file = lists / "loras/a.safetensors"
    file.write_bytes(b"1")
    inputs = {"lora": "a.safetensors", "strength": 1.0, "blocks": ""}
    before = nodes.LoadLora.fingerprint_inputs(**inputs)
    assert nodes.LoadLora.fingerprint_inputs(**inputs) == before
    file.write_bytes(b"22")
    assert nodes.LoadLora.fingerprint_inputs(**inputs) != before
    file.unlink()


def test_extract_runs_again_when_a_calibration_of_a_typed_path_is_written_again(comfy: State, tmp_path: Path) -> None:
    from importlib import import_module

    node = import_module("lbm_lora.comfy.extension").Extract
    file = tmp_path / "c.safetensors"
    inputs = {"base": "base.safetensors", "tuned": "tuned.safetensors", "rank": 4, "calibration": str(file)}
    absent = node.fingerprint_inputs(**inputs)
    file.write_bytes(b"1")
    before = node.fingerprint_inputs(**inputs)
    file.write_bytes(b"22")
    assert len({str(one) for one in (absent, before, node.fingerprint_inputs(**inputs))}) == 3
    node.fingerprint_inputs(**{**inputs, "calibration": None})  # as ComfyUI calls it if the path is linked


def test_photos_of_a_batch_are_rounded() -> None:
    values = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 1, 1, 3)
    (photo,) = as_photos(values)
    assert isinstance(photo, Image.Image)
    assert np.array(photo).tolist() == [[[0, 128, 255]]]
