"""A LoRA in a live denoiser: what trains, what is frozen; and its export, which acts as the trained model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lbm_lora
from lbm_lora.adapter import Adapter, AdapterMetadata, LoraModule, load_adapter, save_adapter
from lbm_lora.apply import Injection, ScaledAdapter, fuse_module, inject
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.factorize import rank_bound
from lbm_lora.model.build import LBMModel, load_model
from lbm_lora.naming import ModuleName, ParamName
from lbm_lora.training.lora import LiveAdapter, export_adapter, inject_plan, layout_of, plan_continued, plan_new
from lbm_lora.training.settings import ModelSettings
from standins import delta

Settings = Callable[..., ModelSettings]
Predict = Callable[..., Tensor]
PARTS = ("attn1", "mid_block", "conv_in", "conv_out", "time_embedding")


def new(denoiser: nn.Module, settings: ModelSettings, **values: Any) -> LiveAdapter:
    plan = plan_new(layout_of(denoiser), settings)
    return inject_plan(denoiser, plan, init=settings.init_lora, dropout=settings.lora_dropout, **values)


def random_adapter(denoiser: nn.Module, dtype: torch.dtype = torch.float32) -> Adapter:
    """Some lora modules of different ranks and alphas, and dense deltas of biases and norms."""
    generator = torch.Generator().manual_seed(3)

    def rand(*shape: int) -> Tensor:
        return (0.1 * torch.randn(shape, generator=generator)).to(dtype)

    layout = layout_of(denoiser)
    modules: dict[ModuleName, LoraModule] = {}
    for index, name in enumerate(name for name in layout.layers if name.startswith(("conv_in", "mid_block"))):
        shape, rank = layout.layers[name], 1 + index % 3
        kernel = (1 for _ in shape[2:])
        modules[name] = LoraModule(name, rand(rank, *shape[1:]), rand(shape[0], rank, *kernel), 1.5)
    biases = [ParamName(f"{name}.bias") for name in modules if name in layout.biased]
    norms = [ParamName(f"{name}.weight") for name in layout.norms if name.startswith("mid_block")]
    dense = {name: rand(*denoiser.get_parameter(name).shape) for name in (*biases, *norms)}
    return Adapter(modules, dense, prefix="denoiser.")


def base_state(denoiser: nn.Module) -> dict[str, Tensor]:
    """Every tensor that is not the LoRA's, under its name in the base."""
    state = {name.replace(".base_layer", ""): value for name, value in denoiser.state_dict().items()}
    return {name: value.clone() for name, value in state.items() if ".lora_" not in name}


def test_only_what_learns_has_gradients_and_is_fp32(base_bf16: Path, settings: Settings) -> None:
    denoiser = load_model(base_bf16, dtype=torch.bfloat16).denoiser
    patterns = (*PARTS, "norm")
    live = new(denoiser, settings(lora_rank=4, train_biases=True, train_norms=True, trainable_lora_modules=patterns))
    learning = {id(parameter) for parameter in live.parameters.values()}
    for name, parameter in denoiser.named_parameters():
        assert parameter.requires_grad == (id(parameter) in learning), name
        assert parameter.dtype == (torch.float32 if id(parameter) in learning else torch.bfloat16), name
    assert len(learning) == len(live.parameters)
    assert {name for name in live.parameters if not name.endswith((".lora_down", ".lora_up"))} == set(live.plan.dense)


def test_a_training_step_changes_what_learns_and_nothing_else(
    model: LBMModel, settings: Settings, predict: Predict
) -> None:
    chosen = settings(lora_rank=4, trainable_lora_modules=("attn1", "conv_in", "norm1"), train_norms=True)
    live = new(model.denoiser, chosen)
    before = base_state(model.denoiser)
    held = {name: value.detach().clone() for name, value in live.parameters.items()}
    model.denoiser.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(live.parameters.values(), lr=0.1)
    for _ in range(2):  # the down factors move from the second step on: the up factors start at zero
        latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        output = model.denoiser(latent, torch.tensor([500.0]), encoder_hidden_states=None).sample
        output.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, value in live.parameters.items():
        assert not torch.equal(value, held[name]), name
    after = base_state(model.denoiser)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(live.plan.dense)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_continued_adapter_acts_as_the_fused_one(
    base_fp32: Path, model: LBMModel, settings: Settings, predict: Predict, dtype: torch.dtype
) -> None:
    adapter = random_adapter(model.denoiser, dtype)
    fused = load_model(base_fp32, dtype=torch.float32).denoiser
    fuse_module(fused, [ScaledAdapter(adapter)])
    chosen = settings(
        lora_weights_path="l.safetensors",
        trainable_lora_modules=("attn2", "norm1"),
        train_norms=True,
        train_biases=True,
    )
    plan = plan_continued(layout_of(model.denoiser), chosen, adapter)
    live = inject_plan(model.denoiser, plan, given=adapter)
    assert {lora.rank for lora in plan.loras} == {1, 2, 3}
    assert {lora.learns for lora in plan.loras} == {True, False}
    assert set(plan.dense) & set(adapter.dense)
    assert set(adapter.dense) - set(plan.dense)
    difference = predict(model.denoiser) - predict(fused)
    assert difference.abs().max() < 1e-5 * predict(fused).abs().max()
    assert sum(parameter.requires_grad for parameter in model.denoiser.parameters()) == len(live.parameters)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "orthogonal", "gaussian"])
def test_initialisations_start_as_the_base(model: LBMModel, settings: Settings, predict: Predict, init: str) -> None:
    before, state = predict(model.denoiser), base_state(model.denoiser)
    live = new(model.denoiser, settings(lora_rank=4, lora_alpha=2.0, init_lora=init))
    assert (predict(model.denoiser) - before).abs().max() < 1e-4 * before.abs().max()
    linear = {lora.name for lora in live.plan.loras if not lora.is_conv}
    assert set(live.initial) == (linear if init.startswith(("pissa", "olora")) else set())
    after = base_state(model.denoiser)
    changed = {name for name in state if not torch.equal(state[name], after[name])}
    assert changed == {f"{name}.weight" for name in live.initial}
    if init != "gaussian":
        default = new(load_model_again(model), settings(lora_rank=4, lora_alpha=2.0))
        key = f"{sorted(linear)[0]}.lora_down"
        assert not torch.equal(default.parameters[key], live.parameters[key])


def load_model_again(model: LBMModel) -> nn.Module:
    """A denoiser of the same configuration with other weights, for shapes alone."""
    again = type(model.denoiser).from_config(model.denoiser.config)
    assert isinstance(again, nn.Module)
    return again


def test_initial_factors_of_an_earlier_injection_are_taken_out_again_exactly(
    base_bf16: Path, settings: Settings
) -> None:
    chosen = settings(lora_rank=4, init_lora="pissa_niter_2", lora_target_modules=("attn1",))
    first = new(load_model(base_bf16, dtype=torch.bfloat16).denoiser, chosen, seed=1)
    again = new(load_model(base_bf16, dtype=torch.bfloat16).denoiser, chosen, seed=2, initial=first.initial)
    one, other = base_state(first.denoiser), base_state(again.denoiser)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(torch.equal(first.initial[name].up, again.initial[name].up) for name in first.initial)


def test_dropout_acts_on_what_learns_and_in_training_mode(
    model: LBMModel, settings: Settings, predict: Predict, move: Callable[..., None]
) -> None:
    adapter = random_adapter(model.denoiser)
    chosen = settings(lora_weights_path="l.safetensors", trainable_lora_modules=("attn2",), lora_dropout=0.5)
    plan = plan_continued(layout_of(model.denoiser), chosen, adapter)
    inject_plan(model.denoiser, plan, given=adapter, dropout=0.5)
    steady = predict(model.denoiser)
    assert torch.equal(predict(model.denoiser), steady)
    dropping = [module for module in model.denoiser.modules() if isinstance(module, nn.Dropout) and module.p == 0.5]
    assert len(dropping) == sum(lora.learns for lora in plan.loras)
    model.denoiser.train()
    assert not torch.equal(predict(model.denoiser), steady)


Move = Callable[..., None]

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "alphas": {"lora_alpha": 2.0, "alpha_pattern": {"attn1": 6.0}, "rank_pattern": {"mid_block": 2, "conv_in": 3}},
    "rslora": {"use_rslora": True, "lora_alpha": 6.0},
    "pissa": {"init_lora": "pissa", "lora_alpha": 2.0},
    "pissa at nearly full rank": {"init_lora": "pissa_niter_4", "lora_rank": 12},
    "olora": {"init_lora": "olora"},
    "orthogonal": {"init_lora": "orthogonal"},
    "convs alone": {"lora_target_modules": ("conv",)},
    "biases and norms": {"train_biases": True, "train_norms": True},
}


def exported(live: LiveAdapter, path: Path) -> Adapter:
    """Through a file, as a run leaves it."""
    save_adapter(export_adapter(live, live.parameters, AdapterMetadata()), path)
    return load_adapter(path)


@pytest.mark.parametrize("case", CASES)
def test_the_export_gives_the_trained_output(
    case: str,
    base_fp32: Path,
    model: LBMModel,
    settings: Settings,
    predict: Predict,
    move: Move,
    tmp_path: Path,
) -> None:
    chosen = settings(**{"lora_rank": 4, **CASES[case]})
    live = inject_plan(model.denoiser, plan_new(layout_of(model.denoiser), chosen), init=chosen.init_lora)
    before = predict(model.denoiser)
    move(live.parameters)
    wanted = predict(model.denoiser)
    adapter = exported(live, tmp_path / "l.safetensors")
    other = load_model(base_fp32, dtype=torch.float32).denoiser
    scale = wanted.abs().max()
    assert (wanted - before).abs().max() > 1e-2 * scale
    for put in (inject, fuse_module):
        done = put(other, [ScaledAdapter(adapter)])
        assert (predict(other) - wanted).abs().max() < 1e-5 * scale
        done.eject() if isinstance(done, Injection) else done.unfuse()
    assert set(adapter.modules) == {lora.name for lora in live.plan.loras}
    assert set(adapter.dense) == set(live.plan.dense)
    assert all(module.rank <= rank_bound(module.shape) for module in adapter.modules.values())


def test_a_continued_adapter_keeps_its_frozen_part_bit_for_bit(
    base_bf16: Path, model: LBMModel, settings: Settings, predict: Predict, move: Move, tmp_path: Path
) -> None:
    given = given_adapter(base_bf16, tmp_path)
    chosen = settings(
        lora_weights_path="l.safetensors",
        trainable_lora_modules=("attn1", "norm1"),
        train_norms=True,
        train_biases=True,
    )
    plan = plan_continued(layout_of(model.denoiser), chosen, given)
    live = inject_plan(model.denoiser, plan, given=given)
    move(live.parameters)
    wanted = predict(model.denoiser)
    adapter = exported(live, tmp_path / "l.safetensors")
    learning = {lora.name for lora in plan.loras if lora.learns}
    assert set(adapter.modules) == set(given.modules)
    assert learning
    for name, module in adapter.modules.items():
        same = torch.equal(module.up, given.modules[name].up.float())
        assert same == (name not in learning), name
        assert module.alpha == given.modules[name].alpha
    frozen = set(given.dense) - set(plan.dense)
    assert frozen
    assert all(torch.equal(adapter.dense[name], given.dense[name].float()) for name in frozen)
    other = load_model(live_base(base_bf16), dtype=torch.float32).denoiser
    fuse_module(other, [ScaledAdapter(adapter)])
    assert (predict(other) - wanted).abs().max() < 1e-5 * wanted.abs().max()


def given_adapter(base: Path, folder: Path) -> Adapter:
    """An extracted adapter in bf16, with dense deltas."""
    with open_checkpoint(base) as checkpoint:
        tensors = {key: checkpoint.read(key).float() for key in checkpoint.specs}
        changed = {
            key: (value + delta(key, tuple(value.shape)) if key.startswith("denoiser.") else value).bfloat16()
            for key, value in tensors.items()
        }
    save_file(changed, folder / "tuned.safetensors")
    return lbm_lora.extract(base, folder / "tuned.safetensors", rank=3, device="cpu")


def live_base(base_bf16: Path) -> Path:
    """The fp32 twin that the fixture `model` is made from."""
    return next(base_bf16.parents[1].glob("fp32*")) / base_bf16.name
