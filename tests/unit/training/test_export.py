"""The exported adapter on the original base gives the output of the model that was trained."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lbm_lora.adapter import Adapter, AdapterMetadata, load_adapter, save_adapter
from lbm_lora.apply import Injection, ScaledAdapter, fuse_module, inject
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.factorize import rank_bound
from lbm_lora.model.build import LBMModel, load_model
from lbm_lora.training.lora import LiveAdapter, export_adapter, inject_plan
from lbm_lora.training.plan import layout_of, plan_continued, plan_new
from lbm_lora.training.settings.model_keys import ModelSettings
from lbm_lora.verbs.extract import extract
from standins import delta

Settings = Callable[..., ModelSettings]
Predict = Callable[..., Tensor]
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
    made = extract(
        base=base,
        tuned=folder / "tuned.safetensors",
        save_to=folder / "x.safetensors",
        rank=3,
    )
    return made


def live_base(base_bf16: Path) -> Path:
    """The fp32 twin that the fixture `model` is made from."""
    return next(base_bf16.parents[1].glob("fp32*")) / base_bf16.name


def test_a_bf16_base_gives_the_trained_output_within_its_rounding(
    base_bf16: Path, settings: Settings, predict: Predict, move: Move, tmp_path: Path
) -> None:
    denoiser = load_model(base_bf16, dtype=torch.bfloat16).denoiser
    chosen = settings(lora_rank=4, init_lora="pissa", train_norms=True)
    live = inject_plan(denoiser, plan_new(layout_of(denoiser), chosen), init="pissa")
    move(live.parameters)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = predict(denoiser)
    adapter = exported(live, tmp_path / "l.safetensors")
    other = load_model(base_bf16, dtype=torch.float32).denoiser
    plain = predict(other)
    fuse_module(other, [ScaledAdapter(adapter)])
    assert (predict(other) - wanted).norm() < 0.1 * (wanted - plain).norm()


def test_values_may_be_others_than_those_of_now(model: LBMModel, settings: Settings) -> None:
    live = inject_plan(model.denoiser, plan_new(layout_of(model.denoiser), settings(lora_rank=2, train_biases=True)))
    doubled: dict[str, Tensor] = {name: 2 * value.detach() for name, value in live.parameters.items()}
    now, average = (export_adapter(live, v, AdapterMetadata()) for v in (live.parameters, doubled))
    name = live.plan.loras[0].name
    assert torch.equal(average.modules[name].down, 2 * now.modules[name].down)
    bias = live.plan.dense[0]
    assert torch.allclose(average.dense[bias], live.base[bias])
    assert isinstance(live.parameters[bias], nn.Parameter)
    assert replace(now, modules={}).dense[bias].abs().max() == 0
