"""Optimizers by name, LoRA+, the schedule, and the average of the weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lbm_lora.train.optim import Average, make_optimizer, rate_factor
from lbm_lora.train.settings.optimizer import OptimizerSettings, optimizers


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


@pytest.mark.parametrize(
    ("scheduler", "wanted"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4]),
    ],
)
def test_schedules(scheduler: Any, wanted: list[float]) -> None:
    settings = make(learning_rate_scheduler=scheduler, warmup_steps=2, max_steps=6)
    assert [rate_factor(settings, step, 6) for step in range(6)] == pytest.approx(wanted)


def test_a_longer_run_than_planned_stays_at_the_end_of_its_schedule() -> None:
    assert rate_factor(make(learning_rate_scheduler="linear"), 9, 6) == 0


def test_average_follows_its_equation(rand: Callable[..., torch.Tensor]) -> None:
    learning = {"a": nn.Parameter(rand(3)), "b": nn.Parameter(rand(2, 2))}
    average = Average(learning, 0.25)
    expected = {name: value.detach().clone() for name, value in learning.items()}
    for step in range(4):
        for value in learning.values():
            value.data += 1
        average.update(learning, step)
        decay = min(0.25, (1 + step) / (10 + step))
        expected = {name: decay * expected[name] + (1 - decay) * learning[name].detach() for name in learning}
    assert min(0.25, 1 / 10) == 0.1
    assert all(torch.allclose(average.values[name], expected[name]) for name in learning)
    assert not any(torch.equal(average.values[name], learning[name]) for name in learning)
