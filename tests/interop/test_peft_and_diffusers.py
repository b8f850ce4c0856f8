"""Our exports run in PEFT and diffusers, and files that these write run here: outputs equal those of a fused UNet."""

import copy
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from lbm_lora.adapter import Adapter, LoraModule, Wishes, load_adapter, save_adapter
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.factorize import down_shape, rank_bound, up_shape
from lbm_lora.naming import ModuleName, ParamName
from nano import UNET

pytestmark = [
    pytest.mark.interop,
    # PEFT and diffusers say what they could not merge, and what is deprecated in their dependencies
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]
SLOW = pytest.mark.slow
BOUND = 2e-6
LAYERS = ["to_q", "to_k", "to_out.0", "conv1", "conv_in", "conv_out", "conv_shortcut", "proj_in", "linear_1"]


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    """A random UNet with every kind of layer of LBM's denoiser. Copied before it is changed."""
    torch.manual_seed(0)
    fields: dict[str, Any] = {key: value for key, value in UNET.items() if not key.startswith("_")}
    made = UNet2DConditionModel(**fields)
    for parameter in made.parameters():  # norms and biases too
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def lora(unet: UNet2DConditionModel) -> Adapter:
    """Factors of several ranks and alphas for every matrix, deltas for every bias and norm."""
    torch.manual_seed(1)
    modules: dict[ModuleName, LoraModule] = {}
    dense: dict[ParamName, Tensor] = {}
    for place, (key, value) in enumerate(unet.state_dict().items()):
        shape = tuple(value.shape)
        if value.dim() == 1:
            dense[ParamName(key)] = 0.1 * torch.randn(shape)
            continue
        name, rank = ModuleName(key.removesuffix(".weight")), min(3 if place % 2 else 6, rank_bound(shape))
        down, up = torch.randn(down_shape(shape, rank)), torch.randn(up_shape(shape, rank))
        modules[name] = LoraModule(name, 0.1 * down, 0.1 * up, float(rank if len(modules) % 3 else 2 * rank + 1))
    assert {module.rank for module in modules.values()} == {3, 4, 6}  # conv_out has 4 outputs
    return Adapter(modules, dense, prefix="denoiser.")


def output(model: nn.Module) -> Tensor:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return cast(Tensor, model(latents, 500, encoder_hidden_states=None, return_dict=False)[0])


def fused(unet: UNet2DConditionModel, adapter: Adapter) -> Tensor:
    """The output of the UNet with the adapter's deltas in its weights."""
    tuned = copy.deepcopy(unet)
    state = tuned.state_dict()
    for name in adapter.params:
        delta = adapter.delta(name)
        assert delta is not None
        state[name] += delta
    return output(tuned)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def component(unet: UNet2DConditionModel) -> Any:
    return open_checkpoint(unet.state_dict()).component()


WAYS = {
    "state dict": lambda path: load_file(path),
    "file": str,
    "folder": lambda path: str(path.parent),
}


@pytest.mark.parametrize(
    ("way", "biases"),
    [
        ("state dict", "lora_bias"),
        ("file", "drop"),
        ("folder", "drop"),
        pytest.param("state dict", "drop", marks=SLOW),
        pytest.param("file", "lora_bias", marks=SLOW),
        pytest.param("folder", "lora_bias", marks=SLOW),
    ],
)
def test_diffusers_runs_our_export(
    tmp_path: Path, unet: UNet2DConditionModel, lora: Adapter, way: str, biases: Any
) -> None:
    path = tmp_path / "pytorch_lora_weights.safetensors"
    saved = save_adapter(lora, path, format="diffusers", wishes=Wishes(biases, "drop"))
    loaded = copy.deepcopy(unet)
    named: dict[str, Any] = {"weight_name": path.name} if way == "folder" else {}
    loaded.load_lora_adapter(WAYS[way](path), prefix="unet", **named)
    kept = lora.filtered(lambda name: name not in saved.dropped)
    assert len(kept.dense) == (sum("norm" not in name for name in lora.dense) if biases == "lora_bias" else 0)
    assert error(output(loaded), fused(unet, kept)) < BOUND
    assert error(output(unet), fused(unet, kept)) > 0.1


@pytest.mark.parametrize(
    ("biases", "norms", "merges"),
    [
        ("drop", "drop", True),
        ("lora_bias", "drop", False),
        ("lora_bias", "replace", False),
        ("replace", "replace", True),
    ],
)
def test_peft_runs_our_export(
    tmp_path: Path, unet: UNet2DConditionModel, lora: Adapter, biases: Any, norms: Any, merges: bool
) -> None:
    saved = save_adapter(lora, tmp_path, format="peft", wishes=Wishes(biases, norms, component(unet)))
    loaded = PeftModel.from_pretrained(copy.deepcopy(unet), str(tmp_path))
    expected = fused(unet, lora.filtered(lambda name: name not in saved.dropped))
    assert error(output(loaded), expected) < BOUND
    if merges:
        assert error(output(loaded.merge_and_unload()), expected) < BOUND


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "patterns": {"rank_pattern": {"conv1": 2, "^conv_in": 3}, "alpha_pattern": {"to_[qk]": 7}, "use_rslora": True},
    "lora_bias": {"lora_bias": True, "target_modules": ["conv1", "conv_in", "to_out.0"]},
    "dora": {"use_dora": True},
    "saved norms": {"modules_to_save": ["norm1", "conv_norm_out"]},
    "all biases": {"bias": "all"},
}


SLOW_KINDS = [pytest.param(kind, marks=SLOW) for kind in ("plain", "lora_bias", "dora")]


def config_of(kind: str) -> LoraConfig:
    fields: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": LAYERS} | CONFIGS[kind]
    return LoraConfig(**fields)


def trained(config: LoraConfig, model: Any) -> None:
    """Give random values to what would be trained."""
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name or (config.bias != "none" and name.endswith(".bias")):
            parameter.data += 0.1 * torch.randn_like(parameter)


@pytest.mark.parametrize("kind", ["patterns", "lora_bias", "dora", pytest.param("plain", marks=SLOW)])
def test_we_read_what_diffusers_saves(tmp_path: Path, unet: UNet2DConditionModel, kind: str) -> None:
    config = config_of(kind)
    model = copy.deepcopy(unet)
    model.add_adapter(config)
    trained(config, model)
    model.save_lora_adapter(tmp_path)
    found = load_adapter(tmp_path, base=component(unet))
    assert found.file_format == "diffusers"
    assert error(fused(unet, found), output(model)) < BOUND
    assert error(output(unet), output(model)) > 0.01


@pytest.mark.parametrize(
    "kind",
    [
        "patterns",
        "saved norms",
        "all biases",
        *SLOW_KINDS,
    ],
)
def test_we_read_what_peft_saves(tmp_path: Path, unet: UNet2DConditionModel, kind: str) -> None:
    config = config_of(kind)
    model = get_peft_model(copy.deepcopy(unet), config)
    trained(config, model)
    model.save_pretrained(str(tmp_path))
    found = load_adapter(tmp_path, base=component(unet))
    assert found.file_format == "peft"
    assert error(fused(unet, found), output(model)) < BOUND
    assert error(output(unet), output(model)) > 0.01


@pytest.mark.parametrize("is_whole", [True, pytest.param(False, marks=SLOW)])
def test_we_read_a_model_with_layers_of_peft_in_memory(unet: UNet2DConditionModel, is_whole: bool) -> None:
    config = LoraConfig(r=4, lora_alpha=4, target_modules=LAYERS)
    model = get_peft_model(copy.deepcopy(unet), config)
    trained(config, model)
    state = model.state_dict() if is_whole else get_peft_model_state_dict(model)
    found = load_adapter(state, base=component(unet))
    assert not found.dense
    assert error(fused(unet, found), output(model)) < BOUND
