"""Optimizers by name, LoRA+, the schedule, the average of the weights, and the learner that has them all."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import ConfigError
from lbm_lora.progress import SILENT
from lbm_lora.training.data.dataset import Batch, collate
from lbm_lora.training.launch import open_fabric
from lbm_lora.training.learner import Learner, check_kept, check_optimizer, make_optimizer, rate_factor
from lbm_lora.training.prepare import PreparedRun
from lbm_lora.training.settings import OptimizerSettings, TrainConfig, optimizers

Config = Callable[..., TrainConfig]


def make(**values: Any) -> OptimizerSettings:
    return OptimizerSettings(**values)


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


def make_learner(config: TrainConfig) -> tuple[Learner, PreparedRun]:
    fabric = open_fabric(config.device)
    assert config.base_model_path is not None
    with open_checkpoint(config.base_model_path) as base:
        run = PreparedRun(config, base, fabric, SILENT)
    fabric.launch()
    return Learner(run, fabric), run


def batch_of(run: PreparedRun, *indices: int) -> Batch:
    return collate([run.train[index] for index in indices])


def test_gradients_of_two_passes_are_those_of_one_with_both_batches(config: Config) -> None:
    values = {"optimizer": "SGD", "gradient_clip": None, "max_steps": 1}
    one, run = make_learner(config(**values))
    loss = one.add_gradients(batch_of(run, 0, 1, 2, 3), step=0, index=0)
    one.take_step(0)
    two, _ = make_learner(config(accumulate=2, **values))
    parts = [two.add_gradients(batch_of(run, *half), step=0, index=i) for i, half in enumerate([(0, 1), (2, 3)])]
    two.take_step(0)
    assert float(sum(parts)) / 2 == pytest.approx(float(loss), rel=1e-5)
    assert float(two.gradient_norm) == pytest.approx(float(one.gradient_norm), rel=1e-4)
    first, second = one.result(), two.result()
    assert any(value.abs().max() > 0 for name, value in first.items() if name.endswith(".lora_up"))
    assert all(torch.allclose(first[name], second[name], rtol=1e-3, atol=1e-6) for name in first)


def test_dropout_depends_on_seed_and_pass_alone(config: Config) -> None:
    learner, run = make_learner(config(lora_dropout=0.5, accumulate=2))
    learner.add_gradients(batch_of(run, 0), step=0, index=0)
    learner.take_step(0)
    batch = batch_of(run, 1)
    torch.manual_seed(1)
    loss = learner.add_gradients(batch, step=1, index=0)
    torch.manual_seed(2)
    assert torch.equal(learner.add_gradients(batch, step=1, index=0), loss)
    assert not torch.equal(learner.add_gradients(batch, step=1, index=1), loss)
    assert torch.equal(learner.add_gradients(batch, step=0, index=2), loss)


def test_the_average_is_evaluated_and_saved_and_the_weights_go_on(config: Config) -> None:
    learner, run = make_learner(config(ema_decay=0.5, optimizer="SGD"))
    wanted = learner.result()
    for step in range(2):
        learner.add_gradients(batch_of(run, 0, 1), step=step, index=0)
        learner.take_step(step)
        now = learner.state()["values"]
        decay = min(0.5, (1 + step) / (10 + step))
        wanted = {name: decay * value + (1 - decay) * now[name] for name, value in wanted.items()}
    state = learner.state()
    average, values = learner.result(), state["values"]
    assert all(torch.allclose(average[name], wanted[name], atol=1e-7) for name in average)
    assert all(torch.equal(average[name], state["average"][name]) for name in average)
    assert any(not torch.equal(average[name], values[name]) for name in average)
    denoiser = learner.loss.model.denoiser
    assert denoiser.training
    with learner.evaluation():
        assert not denoiser.training
        held = {name: value.detach().clone() for name, value in run.trainee.parameters.items()}
    assert denoiser.training
    assert all(torch.equal(held[name], average[name]) for name in held)
    assert all(torch.equal(run.trainee.parameters[name].detach(), values[name]) for name in values)


CPU = torch.device("cpu")


def parameters() -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.ones(2, 2)) for name in ("a.lora_down", "a.lora_up", "b.lora_up", "norm.weight")}


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
