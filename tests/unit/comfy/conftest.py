"""A stand-in for ComfyUI with a small random LBM in its lists."""

import asyncio
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lbm_lora.adapter import Adapter
from nano import write_nano
from standins import delta

sys.path.append(str(Path(__file__).parent))

from comfy_standin import Run, State, install


@pytest.fixture(scope="session")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with diffusion_models/ and loras/; read only."""
    from lbm_lora.verbs.extract import extract

    root = tmp_path_factory.mktemp("comfy")
    for folder in ("diffusion_models", "loras"):
        (root / folder).mkdir()
    models = root / "diffusion_models"
    base = load_file(write_nano(models, torch.float32).rename(models / "base.safetensors"))
    changed = {name: value + delta(name, value.shape) for name, value in base.items() if name.startswith("denoiser.")}
    save_file({**base, **changed}, models / "tuned.safetensors")
    lora = root / "loras/relight.safetensors"
    extract(base=models / "base.safetensors", tuned=models / "tuned.safetensors",
                      save_to=lora, rank=4, conv_rank=4, save_precision="float", device="cpu")  # fmt: skip
    Adapter.load(lora).filtered(lambda name: "attn1" in name).save(root / "loras/attention.safetensors")
    (root / "loras/broken.safetensors").write_bytes(b"not a LoRA")
    return root


@pytest.fixture(scope="module")
def standin(lists: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    root = tmp_path_factory.mktemp("comfyui")
    for folder in ("diffusion_models", "loras"):
        (root / folder).symlink_to(lists / folder)
    state = State(root)
    remove = install(state)
    yield state
    remove()


@pytest.fixture(autouse=True)
def comfy(standin: State) -> State:
    """The running stand-in."""
    standin.interrupted = False
    standin.ticks.clear()
    standin.previews.clear()
    return standin


@pytest.fixture(scope="module")
def run(standin: State) -> Run:
    """`run("LbmLoraLoadModel", checkpoint="base.safetensors", precision="fp32")`: outputs of a node."""
    nodes = asyncio.run(import_module("lbm_lora.comfy.extension").LbmLoraExtension().get_node_list())
    by_id = {node.define_schema().node_id: node for node in nodes}

    def execute(node_id: str, **inputs: Any) -> tuple[Any, ...]:
        node = by_id[node_id]
        schema = node.define_schema()
        known = {socket.id: socket for socket in schema.inputs}
        assert inputs.keys() <= known.keys()
        defaults = {key: one.settings["default"] for key, one in known.items() if "default" in one.settings}
        with torch.inference_mode():
            made = node.execute(**{**defaults, **inputs})
        assert len(made.args) == len(schema.outputs)
        return made.args

    return execute


@pytest.fixture(scope="module")
def base(run: Run) -> tuple[Any, Any]:
    """MODEL and VAE of the base; read only."""
    return run("LbmLoraLoadModel", checkpoint="base.safetensors", precision="fp32")  # pyright: ignore[reportReturnType]


@pytest.fixture
def image() -> Tensor:
    """A batch of two images of 48x40 pixels."""
    return torch.rand(2, 40, 48, 3, generator=torch.Generator().manual_seed(0))
