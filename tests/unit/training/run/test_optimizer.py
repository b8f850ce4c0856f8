"""Optimizers by name, LoRA+, and what torch refuses, found before anything is read."""

from typing import Any

import pytest
import torch
from torch import nn

from lbm_lora.errors import ConfigError
from lbm_lora.training.run.optimizer import check_kept, check_optimizer, make_optimizer
from lbm_lora.training.settings.learning_keys import OptimizerSettings, optimizers

CPU = torch.device("cpu")


def parameters() -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.ones(2, 2)) for name in ("a.lora_down", "a.lora_up", "b.lora_up", "norm.weight")}


def make(**values: Any) -> OptimizerSettings:
    return OptimizerSettings(**values)


def test_lora_plus_gives_up_factors_a_higher_rate() -> None:
    learning = parameters()
    optimizer = make_optimizer(learning, make(learning_rate=1e-3, lora_plus_ratio=16.0))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: rates[id(p)] for name, p in learning.items()} == {
        "a.lora_down": 1e-3,
        "a.lora_up": 16e-3,
        "b.lora_up": 16e-3,
        "norm.weight": 1e-3,
    }


def test_without_it_all_have_one_rate() -> None:
    optimizer = make_optimizer(parameters(), make(learning_rate=1e-3))
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3}


@pytest.mark.parametrize("name", sorted(optimizers().keys() - {"Muon"}))
def test_every_optimizer_of_torch_takes_a_step(name: str) -> None:
    learning = parameters()
    optimizer = make_optimizer(learning, make(optimizer=name, learning_rate=0.1))
    for parameter in learning.values():
        parameter.grad = torch.full((2, 2), 0.5)
    optimizer.step()
    assert type(optimizer).__name__ == name
    assert all((parameter != 1).all() for parameter in learning.values())


def test_arguments_reach_the_optimizer() -> None:
    optimizer = make_optimizer(parameters(), make(optimizer_kwargs={"weight_decay": 0.5, "foreach": True}))
    assert {(group["weight_decay"], group["foreach"], group["fused"]) for group in optimizer.param_groups} == {
        (0.5, True, None)
    }


def test_only_norms_may_learn() -> None:
    learning = {"norm.weight": nn.Parameter(torch.ones(2))}
    assert len(make_optimizer(learning, make()).param_groups) == 1


@pytest.mark.parametrize("name", optimizers())
def test_a_step_on_a_small_matrix_shows_that_an_optimizer_works(name: str) -> None:
    check_optimizer(make(optimizer=name), CPU)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer_kwargs": {"differentiable": True}}, "AdamW .* cannot take a step on cpu: .*leaf"),
        ({"optimizer": "Adamax", "optimizer_kwargs": {"capturable": True}}, "Adamax .* cannot take a step on cpu: "),
        ({"optimizer": "SGD", "optimizer_kwargs": {"weight_decay": 10**40}}, "SGD .*weight_decay"),
        ({"optimizer_kwargs": {"weight_decay": 1e300}}, "AdamW .* makes weights infinite or NaN"),
    ],
)
def test_what_torch_refuses_in_a_step(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^optimizer {message}"):
        check_optimizer(make(**values), CPU)


def test_an_optimizer_of_matrices_refuses_convs() -> None:
    with pytest.raises(ConfigError, match=r"^optimizer Muon cannot train what is to be trained: .*2D"):
        make_optimizer({"conv.lora_up": nn.Parameter(torch.ones(2, 2, 1, 1))}, make(optimizer="Muon"))


def test_an_optimizer_that_goes_on_needs_what_it_has_kept() -> None:
    kept = {"a": {"step": 1, "exp_avg": 0, "exp_avg_sq": 0}}
    check_kept(kept, make(optimizer_kwargs={"weight_decay": 0.5}), CPU)
    with pytest.raises(ConfigError, match="need max_exp_avg_sq, which AdamW has not kept so far in this run"):
        check_kept(kept, make(optimizer_kwargs={"amsgrad": True}), CPU)
    check_kept({}, make(optimizer="SGD", optimizer_kwargs={"momentum": 0.9}), CPU)
