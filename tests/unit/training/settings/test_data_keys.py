"""Pairs that cannot be, and the line that says so."""

from collections.abc import Callable
from typing import Any

import pytest

Said = Callable[..., str]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_folder": None}, "no training data is given. Set train_shards or train_folder."),
        ({"train_shards": ["a.tar"]}, "train_shards and train_folder cannot both be given. Remove one of them."),
        (
            {"validation_shards": ["a.tar"], "validation_folder": "held-out"},
            "validation_shards and validation_folder cannot both be given. Remove one of them.",
        ),
        ({"validation_shards": []}, "validation_shards is empty. List at least one shard, or remove the key."),
        (
            {"validation_shards": ["pipe:cat a.tar"]},
            "validation_shards: 'pipe:cat a.tar' runs a shell command. Allow it with allow_pipe: true.",
        ),
        ({"image_size": []}, "image_size is empty. Give at least one, as in [512]."),
        (
            {"image_size_prob": [0.5, 0.5]},
            "image_size_prob has 2 values, but image_size has 1. Give one for each.",
        ),
        ({"image_size": [64, 128], "image_size_prob": [0.5, 0.25]}, "image_size_prob must add up to 1, got 0.75."),
        (
            {"mask_key": "source.jpg"},
            "source_key, target_key and mask_key must differ, got source.jpg, target.jpg, source.jpg.",
        ),
        (
            {"cache_latents": True, "cache_dir": "c", "flip": True},
            "cache_latents cannot be used with flip, which changes the pairs every epoch.",
        ),
        (
            {"cache_latents": True, "cache_dir": "c", "random_crop": True},
            "cache_latents cannot be used with random_crop, which changes the pairs every epoch.",
        ),
        ({"cache_latents": True}, "cache_latents needs cache_dir, the folder for the latents."),
    ],
)
def test_pairs_that_cannot_be(said: Said, values: dict[str, Any], message: str) -> None:
    assert said(values) == f"train.yaml: {message}"
