"""Keys, values and files that cannot be read, and the line that says so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lbm_lora.errors import ConfigError
from lbm_lora.training.settings.train_config import read_train_config

Said = Callable[..., str]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_siez": 3}, "unknown key 'batch_siez'. Did you mean 'batch_size'?"),
        ({"Learning_Rate": 3}, "unknown key 'Learning_Rate'. Did you mean 'learning_rate'?"),
        (
            {"conditioning_images_keys": ["shading"]},
            "key 'conditioning_images_keys': training with conditioning images is not supported.",
        ),
        (
            {"resume_from_checkpoint": True},
            "key 'resume_from_checkpoint': use 'resume': auto, never, or a file.",
        ),
        ({"batch_size": "8"}, "batch_size: Input should be a valid integer, got '8'."),
        ({"batch_size": 8.0}, "batch_size: Input should be a valid integer, got 8.0."),
        ({"batch_size": True}, "batch_size: Input should be a valid integer, got True."),
        ({"batch_size": 0}, "batch_size: Input should be greater than or equal to 1, got 0."),
        ({"learning_rate": "fast"}, "learning_rate: Input should be a valid number, got 'fast'."),
        ({"learning_rate": float("nan")}, "learning_rate: Input should be a finite number, got nan."),
        ({"shuffle": "maybe"}, "shuffle: Input should be a valid boolean, got 'maybe'."),
        ({"num_steps": 1}, "num_steps: Input should be a list, as in [a, b], got 1."),
        ({"train_shards": "a.tar"}, "train_shards: Input should be a list, as in [a, b], got 'a.tar'."),
        ({"num_steps": [1, "two"]}, "num_steps.1: Input should be a valid integer, got 'two'."),
        ({"rank_pattern": {"ff.net": "x"}}, "rank_pattern.ff.net: Input should be a valid integer, got 'x'."),
        ({"latent_loss_type": "l3"}, "latent_loss_type: Input should be 'l2' or 'l1', got 'l3'. Did you mean 'l2'?"),
        ({"resume": 3}, "resume: Input should be 'auto', 'never' or a file, got 3."),
        ({"precision": 16}, "precision: Input should be 'bf16-mixed' or '32', got 16."),
        ({"image_size": [32]}, "image_size.0: Input should be greater than or equal to 64, got 32."),
        ({"ema_decay": 1}, "ema_decay: Input should be less than 1, got 1."),
        ({"lora_dropout": 1.0}, "lora_dropout: Input should be less than 1, got 1.0."),
        (
            {"selected_timesteps": [0.0]},
            "selected_timesteps.0: Input should be greater than 0, got 0.0.",
        ),
    ],
)
def test_keys_and_values(said: Said, values: dict[str, Any], message: str) -> None:
    assert said(values) == f"train.yaml: {message}"


def test_a_key_unlike_any_lists_the_valid_ones(said: Said) -> None:
    message = said({"zzzzzz": 1})
    assert message.startswith("train.yaml: unknown key 'zzzzzz'. Valid keys: train_shards, validation_shards, ")
    assert message.endswith(", resume.")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (("batch-siez", "3"), "command line: unknown key 'batch_siez'. Did you mean 'batch_size'?"),
        (("batch_size", "many"), "command line: batch_size: Input should be a valid integer, got 'many'."),
        (
            ("trainable_lora_modules", "attn1"),
            "command line: trainable_lora_modules: Input should be a list, as in [a, b], got 'attn1'.",
        ),
        (("lora_rank.attn1", "3"), "command line: lora_rank.attn1: 'lora_rank' is 4, which has no key 'attn1'."),
    ],
)
def test_overrides(said: Said, override: tuple[str, str], message: str) -> None:
    assert said({}, (override,)) == message


def test_an_override_that_is_no_yaml(said: Said) -> None:
    message = said({}, (("num_steps", "[1, 2"),))
    assert message.startswith("command line: num_steps is not plain YAML: while parsing a flow sequence")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "train.yaml holds a list, not a mapping of keys."),
        ("", "train.yaml holds a NoneType, not a mapping of keys."),
        ("a: !!python/object:os.system {}\n", "train.yaml is not plain YAML: could not determine a constructor"),
        ("seed: 1\nseed: 2\n", "train.yaml repeats the key 'seed'"),
        ("rank_pattern: {2020-01-01: 4}\n", "train.yaml: keys must be str"),
        ("? [1, 2]\n: 3\n", "train.yaml is not plain YAML: while constructing a mapping"),
    ],
)
def test_files_that_are_no_mapping_of_plain_values(said: Said, text: str, message: str) -> None:
    assert said(text).startswith(message)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.yaml does not exist\. The folder "):
        read_train_config(tmp_path / "train.yaml")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"train\.yaml is not a text in UTF-8"):
        read_train_config(tmp_path / "train.yaml")
