"""The pipeline on the bundled mini model, as a user of diffusers writes it, and its folder without lbm-lora."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lbm_lora
from lbm_lora import bundled

SOURCE = min(bundled.PAIRS.glob("*.source.png"))

WITHOUT = """
import sys

class NoLbmLora:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "lbm_lora":
            raise ModuleNotFoundError(f"{name} is not installed")

sys.meta_path.insert(0, NoLbmLora())

import PIL.Image
from diffusers import DiffusionPipeline

folder, source, output = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
pipe(PIL.Image.open(source), num_inference_steps=2, seed=3, size=128).images[0].save(output)
pipe.save_pretrained(folder + "-again")
print(type(pipe).__name__, *sorted(name for name in sys.modules if name.startswith("lbm_lora")))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    made = lbm_lora.make_base(
        folder / "exact_base.ckpt",
        config_path=bundled.TUNED / "config.yaml",
        backbone_signature=str(bundled.BACKBONE),
    )
    return made.base.safetensors


@pytest.fixture(scope="module")
def lora(folder: Path, base: Path) -> Path:
    path = folder / "relight.safetensors"
    lbm_lora.extract(base, bundled.TUNED, save_to=path, rank=8)
    return path


def pixels(image: Image.Image | Path) -> np.ndarray:
    return np.asarray(Image.open(image) if isinstance(image, Path) else image).astype(int)


def test_the_pipeline_does_what_infer_does_and_its_folder_needs_diffusers_alone(
    folder: Path, base: Path, lora: Path
) -> None:
    pipe = lbm_lora.LBMPipeline.from_checkpoint(base, torch_dtype="float", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    pipe.load_lora_weights(lora, adapter_name="relight")
    pipe.set_adapters(["relight"], [0.8])
    photo = Image.open(SOURCE)
    image = pipe(photo, num_inference_steps=2, mask=None, seed=3, size=128).images[0]

    lbm_lora.infer(
        base,
        SOURCE,
        folder / "infer.png",
        lora,
        lora_scale=0.8,
        num_inference_steps=2,
        seed=3,
        size=128,
        torch_dtype="float",
        device="cpu",
    )
    assert np.abs(pixels(image) - pixels(folder / "infer.png")).max() <= 2
    with pipe.lora_scale(0.0):
        base_image = pipe(photo, num_inference_steps=2, seed=3, size=128).images[0]
    assert np.abs(pixels(base_image) - pixels(image)).mean() > 2

    pipe.fuse_lora()
    pipe.save_pretrained(folder / "folder")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT, str(folder / "folder"), str(SOURCE), str(folder / "without.png")],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment | {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.stdout.split() == ["LatentBridgePipeline"], done.stderr
    assert np.array_equal(pixels(folder / "without.png"), pixels(folder / "infer.png"))
    again = folder / "folder-again"
    for name in ("pipeline.py", "unet/diffusion_pytorch_model.safetensors"):
        assert (again / name).read_bytes() == (folder / "folder" / name).read_bytes()

    pipe.unload_lora_weights()
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())
