"""Models that cannot be, and the line that says so."""

from collections.abc import Callable
from typing import Any

import pytest

Said = Callable[..., str]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"base_model_path": None},
            "no base is given. Set base_model_path, or backbone_signature to create it from.",
        ),
        (
            {"lora_rank": None},
            "there is no LoRA to train. Set lora_rank for a new one, lora_weights_path to continue one, or mode: full.",
        ),
        (
            {"lora_weights_path": "lora.safetensors"},
            "lora_weights_path and lora_rank cannot both be given: the file defines modules, ranks and alphas. "
            "Remove lora_rank, or lora_weights_path to train a new LoRA.",
        ),
        (
            {"lora_weights_path": "lora.safetensors", "lora_rank": None, "lora_target_modules": ["attn1"]},
            "lora_weights_path and lora_target_modules cannot both be given: the file defines modules, ranks and "
            "alphas. Remove lora_target_modules, or lora_weights_path to train a new LoRA.",
        ),
        (
            {"mode": "full"},
            "mode full trains every parameter, but lora_rank needs mode lora. Remove it.",
        ),
        (
            {"mode": "full", "lora_rank": None, "trainable_lora_modules": ["attn1"]},
            "mode full trains every parameter, but trainable_lora_modules needs mode lora. Remove it.",
        ),
        (
            {"mode": "full", "lora_rank": None, "lora_plus_ratio": 16.0},
            "mode full trains every parameter, but lora_plus_ratio needs mode lora. Remove it.",
        ),
        (
            {"mode": "full", "lora_rank": None, "lora_alpha_is": "rank"},
            "mode full trains every parameter, but lora_alpha_is needs mode lora. Remove it.",
        ),
        (
            {"lora_alpha_is": "file"},
            "lora_alpha_is needs lora_weights_path, which is not given. Remove it.",
        ),
        (
            {"trainable_lora_modules": []},
            "trainable_lora_modules is empty, which selects nothing. Set it to null for all modules.",
        ),
        (
            {"rank_pattern": {"re:(": 4}},
            "pattern 're:(': the regular expression does not compile: missing ) at position 1.",
        ),
        (
            {"init_lora": "pisa"},
            "unknown init_lora 'pisa'. Choose one of default, gaussian, pissa, pissa_niter_N, olora, orthogonal.",
        ),
        (
            {"init_lora": "pissa_niter_101"},
            "init_lora pissa_niter_N has N up to 100, got 'pissa_niter_101'.",
        ),
        ({"num_steps": [1001]}, "num_steps.0: Input should be less than or equal to 1000, got 1001."),
        ({"init_lora": "orthogonal", "lora_rank": 3}, "init_lora orthogonal needs even ranks, but lora_rank is 3."),
    ],
)
def test_models_that_cannot_be(said: Said, values: dict[str, Any], message: str) -> None:
    assert said(values) == f"train.yaml: {message}"
