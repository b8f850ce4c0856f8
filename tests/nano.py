"""A small random LBM, pairs of images, and short runs of training on them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from lbm_lora.adapter import Adapter, load_adapter
from lbm_lora.model.build import LBMModel, load_model
from standins import LBM_YAML, lbm_unet_config, unet_shapes, vae_config, vae_shapes, values

if TYPE_CHECKING:
    from lbm_lora.training.fit import FitResult
    from lbm_lora.training.settings import ModelSettings, TrainConfig

UNET = lbm_unet_config() | {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "transformer_layers_per_block": [1, 1],
    "attention_head_dim": [1, 2],
    "norm_num_groups": 4,
    "cross_attention_dim": [8, 16],
}
"""All kinds of modules that LBM's denoiser has, on two levels: training runs of it take a moment."""

VAE = vae_config() | {"block_out_channels": [8] * 4, "layers_per_block": 1, "norm_num_groups": 4}


def write_nano(folder: Path, dtype: torch.dtype) -> Path:
    """A random base of that denoiser, its values those of `standins`; returns the path of its model.safetensors."""
    (folder / "config.yaml").write_text(yaml.safe_dump(LBM_YAML | {"unet": UNET, "vae": VAE}))
    tensors = {f"denoiser.{name}": values(name, shape) for name, shape in unet_shapes(UNET).items()}
    tensors |= {f"vae.vae_model.{name}": values(f"vae.{name}", shape) for name, shape in vae_shapes(VAE).items()}
    path = folder / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, path)
    return path


@pytest.fixture(scope="session")
def base_fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in fp32. Read only."""
    return write_nano(tmp_path_factory.mktemp("fp32"), torch.float32)


@pytest.fixture(scope="session")
def base_bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same base in bf16. Read only."""
    return write_nano(tmp_path_factory.mktemp("bf16"), torch.bfloat16)


@pytest.fixture
def model(base_fp32: Path) -> LBMModel:
    """A fresh model: a test may put a LoRA into it."""
    return load_model(base_fp32, dtype=torch.float32)


@pytest.fixture
def settings() -> "Callable[..., ModelSettings]":
    """`settings(lora_rank=4)`: the model's section of a training file."""
    from lbm_lora.training.settings import ModelSettings

    defaults: dict[str, Any] = {"base_model_path": Path("base.safetensors")}
    return lambda **values: ModelSettings(**(defaults | values))


@pytest.fixture
def move() -> Callable[..., None]:
    """`move(parameters)`: change each as a few steps of training would."""

    def change(parameters: dict[str, nn.Parameter], size: float = 0.02, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in parameters.values():
            parameter.data += size * torch.randn(parameter.shape, generator=generator)

    return change


@pytest.fixture
def predict() -> Callable[..., torch.Tensor]:
    """`predict(denoiser)`: its prediction for a seeded batch of two latents."""

    def output_of(denoiser: nn.Module, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        latent = torch.randn(2, 4, 8, 8, generator=generator)
        with torch.no_grad():
            return denoiser(latent, torch.tensor([250.0, 1000.0]), encoder_hidden_states=None).sample.float()

    return output_of


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pairs of 64x64 images with masks. Read only."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for index in range(6):
        for role in ("source", "target"):
            smooth = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(smooth).resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{index}.{role}.png")
        mask = np.zeros((64, 64), dtype=np.uint8)
        mask[: 32 + 8 * (index % 3)] = 255
        Image.fromarray(mask).save(folder / f"{index}.mask.png")
    return folder


@pytest.fixture
def config(base_fp32: Path, pairs: Path, tmp_path: Path) -> "Callable[..., TrainConfig]":
    """`config(max_steps=3)`: a short run of a new LoRA on the base in fp32, in `tmp_path / "run"`."""
    from lbm_lora.training.settings import TrainConfig

    defaults: dict[str, Any] = {
        "train_folder": pairs,
        "base_model_path": base_fp32,
        "lora_rank": 2,
        "lora_target_modules": ("attn1", "conv_in"),
        "learning_rate": 1e-2,
        "batch_size": 2,
        "image_size": (64,),
        "precision": "32",
        "base_dtype": "float",
        "device": "cpu",
        "gradient_checkpointing": False,
        "save_ckpt_path": tmp_path / "run",
        "save_interval": 2,
        "log_interval": 1,
        "max_steps": 4,
        "logger": "none",
        "num_steps": (1, 2),
        "validation_samples": 3,
    }
    return lambda **values: TrainConfig(**(defaults | values))


class Recorder:
    """A listener that keeps what it hears, and does something at one step."""

    def __init__(self, at: int = 0, action: Callable[[], None] | None = None) -> None:
        self.notes: list[str] = []
        self.phases: list[tuple[int, str]] = []
        self.steps = 0
        self._at, self._action = at, action

    def start(self, total: int, what: str) -> None:
        self.phases.append((total, what))

    def advance(self, n: int = 1) -> None:
        if self.phases[-1][1] == "training":
            self.steps += n
            if self.steps == self._at and self._action:
                self._action()

    def note(self, message: str) -> None:
        self.notes.append(message)


def train(config: "TrainConfig", listener: Recorder | None = None) -> "FitResult":
    from lbm_lora.training.fit import fit

    assert config.base_model_path is not None
    return fit(config, config.base_model_path, listener or Recorder())


def same(one: Path, other: Path) -> bool:
    """Whether two adapters have the very same tensors."""
    first, second = tensors(load_adapter(one)), tensors(load_adapter(other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def distance(one: Path, other: Path) -> float:
    """The largest relative distance of two adapters' tensors, Frobenius."""
    first, second = tensors(load_adapter(one)), tensors(load_adapter(other))
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).norm() / first[name].norm()) for name in first)


def tensors(adapter: Adapter) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {f"{name}.up": module.up for name, module in adapter.modules.items()}
    found |= {f"{name}.down": module.down for name, module in adapter.modules.items()}
    return found | {str(name): delta for name, delta in adapter.dense.items()}
