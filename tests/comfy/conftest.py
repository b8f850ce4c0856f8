"""A running ComfyUI for each folder in COMFYUI_PATH, with the mini model's files in its lists."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import lbm_lora
from lbm_lora.adapter import Adapter
from lbm_lora.bundled import BACKBONE, PAIRS, TUNED
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.model.resolve import config_to_metadata, resolve_config

from .server import ROOT, ComfyServer, Pixels, Prompt, python_of

WORKFLOWS = ROOT / "integrations/comfyui/example_workflows"
FOLDERS = [Path(text) for text in os.environ.get("COMFYUI_PATH", "").split(os.pathsep) if text]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "comfyui" in metafunc.fixturenames:
        absent = pytest.param(None, marks=pytest.mark.skip(reason="COMFYUI_PATH names no ComfyUI"), id="none")
        folders = [pytest.param(path, id=path.name) for path in FOLDERS] or [absent]
        metafunc.parametrize("comfyui", folders, scope="session")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base directory of ComfyUI: the mini model's base and tuned checkpoint, LoRAs in several formats, an image."""
    root = tmp_path_factory.mktemp("files")
    models, loras, images = (root / name for name in ("models/diffusion_models", "models/loras", "input"))
    for folder in (models, loras, images):
        folder.mkdir(parents=True)
    options: Any = {"config_path": TUNED / "config.yaml", "backbone_signature": str(BACKBONE)}
    lbm_lora.make_base(root / "mini_base.safetensors", **options)
    shutil.copy(root / "mini_base.safetensors", models)
    with open_checkpoint(TUNED / "model.safetensors") as tuned:
        metadata = config_to_metadata(resolve_config(tuned))
    save_file(load_file(TUNED / "model.safetensors"), models / "relight.safetensors", metadata)
    lbm_lora.extract(
        models / "mini_base.safetensors", models / "relight.safetensors", save_to=loras / "relight.safetensors"
    )
    adapter = Adapter.load(loras / "relight.safetensors")
    adapter.save(loras / "relight_comfyui.safetensors", "comfyui")
    adapter.save(loras / "relight_flat.safetensors", "kohya-diffusers", biases="drop", norms="drop")
    adapter.filtered(lambda name: "attn" in name).save(loras / "attention.safetensors")
    (loras / "broken.safetensors").write_bytes(b"not a LoRA")
    source = sorted(PAIRS.glob("*.source.png"))[0]
    shutil.copy(source, images / "source.png")
    shutil.copy(source.with_name(source.name.replace(".source.", ".mask.")), images / "mask.png")
    return root


@pytest.fixture(scope="session")
def server(comfyui: Path, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    base = tmp_path_factory.mktemp(f"comfyui-{comfyui.name}")
    shutil.copytree(files, base, dirs_exist_ok=True)
    running = ComfyServer(comfyui, python_of(comfyui), base)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def infer(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pixels]:
    """`infer(lora_scale=(0.5,))`: the pixels that `lbm-lora infer` makes of the source in fp32."""

    def run(base: str = "mini_base", lora: tuple[str, ...] = ("relight",), **options: Any) -> Pixels:
        output = tmp_path_factory.mktemp("infer") / "out.png"
        lbm_lora.infer(
            files / f"models/diffusion_models/{base}.safetensors",
            files / "input/source.png",
            output,
            [files / f"models/loras/{name}.safetensors" for name in lora],
            torch_dtype="float",
            device="cpu",
            **options,
        )
        return np.array(Image.open(output).convert("RGB")).astype(np.int64)

    return run


def workflow(name: str) -> Prompt:
    """An example workflow as POST /prompt takes it."""
    return json.loads((WORKFLOWS / f"api/{name}.json").read_text())
