"""Losses, optimizers and lengths that cannot be, and the line that says so."""

from collections.abc import Callable
from typing import Any

import pytest

Said = Callable[..., str]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": "adamw"}, "optimizer 'adamw' is not a class of torch.optim. Did you mean 'AdamW'?"),
        (
            {"optimizer": "LBFGS"},
            "optimizer LBFGS is not supported: it evaluates the loss several times in a step.",
        ),
        (
            {"optimizer_kwargs": {"weight_decy": 0}},
            "optimizer_kwargs.weight_decy is not an argument of AdamW. Did you mean 'weight_decay'?",
        ),
        (
            {"optimizer_kwargs": {"lr": 1.0}},
            "optimizer_kwargs.lr is not allowed. Use learning_rate.",
        ),
        (
            {"optimizer_kwargs": {"eps": -1}},
            "AdamW rejects optimizer_kwargs {'eps': -1}: Invalid epsilon value: -1.",
        ),
        ({"optimizer_kwargs": {"amsgrad": "hello"}}, "optimizer_kwargs.amsgrad must be a bool, got 'hello'."),
        (
            {"optimizer": "SGD", "optimizer_kwargs": {"dampening": "hello"}},
            "optimizer_kwargs.dampening must be a float, got 'hello'.",
        ),
        (
            {"warmup_steps": 10, "max_steps": 10},
            "warmup_steps is 10 and max_steps 10: the warm-up would never end.",
        ),
        (
            {"latent_loss_weight": 0},
            "latent_loss_weight and pixel_loss_weight are both 0. At least one must be above 0.",
        ),
        (
            {"selected_timesteps": [500.0], "prob": [0.5, 0.5]},
            "prob has 2 values, but selected_timesteps has 1. Give one for each.",
        ),
        ({"selected_timesteps": []}, "selected_timesteps is empty. Give at least one, or remove the key."),
        (
            {"timestep_sampling": "uniform", "prob": [1.0]},
            "prob needs timestep_sampling custom_timesteps, but it is uniform.",
        ),
        (
            {"timestep_sampling": "uniform", "logit_std": 1.0},
            "logit_std needs timestep_sampling log_normal, but it is uniform.",
        ),
    ],
)
def test_learning_that_cannot_be(said: Said, values: dict[str, Any], message: str) -> None:
    assert said(values) == f"train.yaml: {message}"
