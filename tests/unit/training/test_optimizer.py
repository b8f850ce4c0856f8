"""Optimizers by name, LoRA+, and what torch refuses, found before anything is read."""

from typing import Any

import pytest
import torch
from torch import nn

from lbm_lora.errors import ConfigError
from lbm_lora.training.optimizer import check_kept, check_optimizer, make_optimizer
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
    with pytest.raises(ConfigError, match=r"^optimizer Muon cannot train the chosen parameters: .*2D"):
        make_optimizer({"conv.lora_up": nn.Parameter(torch.ones(2, 2, 1, 1))}, make(optimizer="Muon"))


def kept_by(parameters: dict[str, nn.Parameter], **values: Any) -> dict[str, dict[str, Any]]:
    """Return the optimizer's state after one step."""
    optimizer = make_optimizer(parameters, make(**values))
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {name: dict(optimizer.state[parameter]) for name, parameter in parameters.items()}


def learning() -> dict[str, nn.Parameter]:
    shapes = {"a": (8, 2), "c": (2, 4, 3, 3), "n": (4,)}
    return {name: nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}


def test_an_optimizer_that_goes_on_needs_what_it_has_kept() -> None:
    parameters = learning()
    kept = kept_by(parameters)
    check_kept(kept, parameters, make(optimizer_kwargs={"weight_decay": 0.5}))
    with pytest.raises(ConfigError, match="need max_exp_avg_sq, which AdamW has not kept so far in this run"):
        check_kept(kept, parameters, make(optimizer_kwargs={"amsgrad": True}))
    check_kept({}, parameters, make(optimizer="SGD", optimizer_kwargs={"momentum": 0.9}))


@pytest.mark.parametrize("name", sorted({*optimizers()} - {"Muon"}))
def test_what_an_optimizer_has_kept_has_the_shapes_of_its_parameters(name: str) -> None:
    parameters = learning()
    kept = kept_by(parameters, optimizer=name)
    check_kept(kept, parameters, make(optimizer=name))
    tensors = [key for key, value in kept["a"].items() if isinstance(value, torch.Tensor) and value.dim()]
    for key in tensors:
        damaged = kept | {"a": kept["a"] | {key: torch.zeros(7, 7)}}
        with pytest.raises(ConfigError, match=f"{key} has another shape"):
            check_kept(damaged, parameters, make(optimizer=name))
