"""What a training file may not say, and the line that says so."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lbm_lora.errors import ConfigError
from lbm_lora.train.config import read_train_config

SMALL: dict[str, Any] = {"train_folder": "pairs", "base_model_path": "base.safetensors", "lora_rank": 4}


def said(folder: Path, values: dict[str, Any] | str, overrides: tuple[tuple[str, str], ...] = ()) -> str:
    """The error of a file, without its place."""
    path = folder / "train.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(SMALL | values))
    with pytest.raises(ConfigError) as caught:
        read_train_config(path, overrides)
    return str(caught.value).replace(str(path), "train.yaml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_siez": 3}, "unknown key 'batch_siez'. Did you mean 'batch_size'?"),
        ({"Learning_Rate": 3}, "unknown key 'Learning_Rate'. Did you mean 'learning_rate'?"),
        (
            {"conditioning_images_keys": ["shading"]},
            "key 'conditioning_images_keys': conditioning images cannot be trained with.",
        ),
        (
            {"resume_from_checkpoint": True},
            "key 'resume_from_checkpoint': the key is 'resume': auto, never, or a file.",
        ),
        ({"batch_size": "8"}, "batch_size: Input should be a valid integer, not '8'."),
        ({"batch_size": 8.0}, "batch_size: Input should be a valid integer, not 8.0."),
        ({"batch_size": True}, "batch_size: Input should be a valid integer, not True."),
        ({"batch_size": 0}, "batch_size: Input should be greater than or equal to 1, not 0."),
        ({"learning_rate": "fast"}, "learning_rate: Input should be a valid number, not 'fast'."),
        ({"learning_rate": float("nan")}, "learning_rate: Input should be a finite number, not nan."),
        ({"shuffle": "maybe"}, "shuffle: Input should be a valid boolean, not 'maybe'."),
        ({"num_steps": 1}, "num_steps: Input should be a list, as in [a, b], not 1."),
        ({"train_shards": "a.tar"}, "train_shards: Input should be a list, as in [a, b], not 'a.tar'."),
        ({"num_steps": [1, "two"]}, "num_steps.1: Input should be a valid integer, not 'two'."),
        ({"rank_pattern": {"ff.net": "x"}}, "rank_pattern.ff.net: Input should be a valid integer, not 'x'."),
        ({"latent_loss_type": "l3"}, "latent_loss_type: Input should be 'l2' or 'l1', not 'l3'. Did you mean 'l2'?"),
        ({"resume": 3}, "resume: Input should be 'auto', 'never' or a file, not 3."),
        ({"precision": 16}, "precision: Input should be 'bf16-mixed' or '32', not 16."),
        ({"image_size": [32]}, "image_size.0: Input should be greater than or equal to 64, not 32."),
        ({"ema_decay": 1}, "ema_decay: Input should be less than 1, not 1."),
        ({"lora_dropout": 1.0}, "lora_dropout: Input should be less than 1, not 1.0."),
        (
            {"selected_timesteps": [0.0]},
            "selected_timesteps.0: Input should be greater than 0, not 0.0.",
        ),
    ],
)
def test_keys_and_values(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    assert said(tmp_path, values) == f"train.yaml: {message}"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_folder": None}, "there is nothing to train on. Give train_shards or train_folder."),
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
            "image_size_prob has 2 values and image_size has 1. Give one for each.",
        ),
        ({"image_size": [64, 128], "image_size_prob": [0.5, 0.25]}, "image_size_prob must add up to 1, not 0.75."),
        (
            {"mask_key": "source.jpg"},
            "source_key, target_key and mask_key must differ, not be source.jpg, target.jpg, source.jpg.",
        ),
        (
            {"cache_latents": True, "cache_dir": "c", "flip": True},
            "cache_latents cannot be used with flip, which changes the pairs every epoch.",
        ),
        (
            {"cache_latents": True, "cache_dir": "c", "random_crop": True},
            "cache_latents cannot be used with random_crop, which changes the pairs every epoch.",
        ),
        ({"cache_latents": True}, "cache_latents needs cache_dir, the folder that the latents are kept in."),
    ],
)
def test_pairs_that_cannot_be(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    assert said(tmp_path, values) == f"train.yaml: {message}"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"base_model_path": None},
            "there is no base. Give base_model_path, or backbone_signature to make it from.",
        ),
        (
            {"lora_rank": None},
            "there is no LoRA to train. Give lora_rank for a new one, lora_weights_path to continue one, or "
            "mode: full.",
        ),
        (
            {"lora_weights_path": "lora.safetensors"},
            "lora_weights_path and lora_rank cannot both be given: modules, ranks and alphas are those of the file. "
            "Remove lora_rank, or lora_weights_path to train a new LoRA.",
        ),
        (
            {"lora_weights_path": "lora.safetensors", "lora_rank": None, "lora_target_modules": ["attn1"]},
            "lora_weights_path and lora_target_modules cannot both be given: modules, ranks and alphas are those of "
            "the file. Remove lora_target_modules, or lora_weights_path to train a new LoRA.",
        ),
        (
            {"mode": "full"},
            "mode full trains every parameter, and lora_rank is only used with mode lora. Remove it.",
        ),
        (
            {"mode": "full", "lora_rank": None, "trainable_lora_modules": ["attn1"]},
            "mode full trains every parameter, and trainable_lora_modules is only used with mode lora. Remove it.",
        ),
        (
            {"mode": "full", "lora_rank": None, "lora_plus_ratio": 16.0},
            "mode full trains every parameter, and lora_plus_ratio is only used with mode lora. Remove it.",
        ),
        (
            {"mode": "full", "lora_rank": None, "lora_alpha_is": "rank"},
            "mode full trains every parameter, and lora_alpha_is is only used with mode lora. Remove it.",
        ),
        (
            {"lora_alpha_is": "file"},
            "lora_alpha_is is about the file of lora_weights_path, which is not given. Remove it.",
        ),
        (
            {"trainable_lora_modules": []},
            "trainable_lora_modules is empty, which selects nothing. null, or no such key, takes all modules.",
        ),
        (
            {"rank_pattern": {"re:(": 4}},
            "pattern 're:(': the regular expression does not compile: missing ), unterminated subpattern at "
            "position 0.",
        ),
        (
            {"init_lora": "pisa"},
            "init_lora 'pisa' is not known. Take one of default, gaussian, pissa, pissa_niter_N, olora, orthogonal.",
        ),
        ({"init_lora": "orthogonal", "lora_rank": 3}, "init_lora orthogonal needs even ranks, and lora_rank is 3."),
    ],
)
def test_models_that_cannot_be(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    assert said(tmp_path, values) == f"train.yaml: {message}"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": "adamw"}, "optimizer 'adamw' is no class of torch.optim. Did you mean 'AdamW'?"),
        (
            {"optimizer": "LBFGS"},
            "optimizer LBFGS cannot train here: it evaluates the loss several times in a step.",
        ),
        (
            {"optimizer_kwargs": {"weight_decy": 0}},
            "optimizer_kwargs.weight_decy is no argument of AdamW. Did you mean 'weight_decay'?",
        ),
        (
            {"optimizer_kwargs": {"lr": 1.0}},
            "optimizer_kwargs.lr cannot be given: it is learning_rate.",
        ),
        (
            {"optimizer_kwargs": {"eps": -1}},
            "AdamW refuses optimizer_kwargs {'eps': -1}: Invalid epsilon value: -1.",
        ),
        (
            {"warmup_steps": 10, "max_steps": 10},
            "warmup_steps is 10 and max_steps 10: the learning rate would never be reached.",
        ),
        (
            {"latent_loss_weight": 0},
            "latent_loss_weight and pixel_loss_weight are both 0: there is no loss.",
        ),
        (
            {"selected_timesteps": [500.0], "prob": [0.5, 0.5]},
            "prob has 2 values and selected_timesteps has 1. Give one for each.",
        ),
        ({"selected_timesteps": []}, "selected_timesteps is empty. Give at least one, or remove the key."),
        (
            {"timestep_sampling": "uniform", "prob": [1.0]},
            "prob is only used with timestep_sampling custom_timesteps, and it is uniform.",
        ),
        (
            {"timestep_sampling": "uniform", "logit_std": 1.0},
            "logit_std is only used with timestep_sampling log_normal, and it is uniform.",
        ),
        (
            {"wandb_project": "relight", "logger": "csv"},
            "wandb_project is only used with logger wandb, and it is csv.",
        ),
        ({"logger": "wandb"}, "logger wandb needs wandb_project."),
        ({"device": "cuda:1", "devices": 2}, "device cuda:1 is one device, and devices is 2."),
        ({"num_steps": []}, "num_steps is empty. Give at least one, as in [1, 2, 4]."),
        (
            {"best_metric": "psnr"},
            "best_metric psnr needs validation pairs. Give validation_shards or validation_folder.",
        ),
    ],
)
def test_runs_that_cannot_be(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    assert said(tmp_path, values) == f"train.yaml: {message}"


def test_a_key_unlike_any_lists_the_valid_ones(tmp_path: Path) -> None:
    message = said(tmp_path, {"zzzzzz": 1})
    assert message.startswith("train.yaml: unknown key 'zzzzzz'. Valid keys: train_shards, validation_shards, ")
    assert message.endswith(", resume.")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (("batch-siez", "3"), "command line: unknown key 'batch_siez'. Did you mean 'batch_size'?"),
        (("batch_size", "many"), "command line: batch_size: Input should be a valid integer, not 'many'."),
        (
            ("trainable_lora_modules", "attn1"),
            "command line: trainable_lora_modules: Input should be a list, as in [a, b], not 'attn1'.",
        ),
        (("lora_rank.attn1", "3"), "command line: lora_rank.attn1: 'lora_rank' is 4, which has no key 'attn1'."),
    ],
)
def test_overrides(tmp_path: Path, override: tuple[str, str], message: str) -> None:
    assert said(tmp_path, {}, (override,)) == message


def test_an_override_that_is_no_yaml(tmp_path: Path) -> None:
    message = said(tmp_path, {}, (("num_steps", "[1, 2"),))
    assert message.startswith("command line: num_steps is no plain YAML: while parsing a flow sequence")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "train.yaml holds a list, not a mapping of keys."),
        ("", "train.yaml holds a NoneType, not a mapping of keys."),
        ("a: !!python/object:os.system {}\n", "train.yaml is no plain YAML: could not determine a constructor"),
        ("seed: 1\nseed: 2\n", "train.yaml is no plain YAML: the key 'seed' comes twice"),
        ("rank_pattern: {2020-01-01: 4}\n", "train.yaml: keys must be str"),
        ("? [1, 2]\n: 3\n", "train.yaml is no plain YAML: while constructing a mapping"),
    ],
)
def test_files_that_are_no_mapping_of_plain_values(tmp_path: Path, text: str, message: str) -> None:
    assert said(tmp_path, text).startswith(message)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.yaml cannot be read: No such file or directory\."):
        read_train_config(tmp_path / "train.yaml")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"train\.yaml is no plain YAML: 'utf-8' codec can't decode"):
        read_train_config(tmp_path / "train.yaml")


@pytest.mark.parametrize("key", ["base_model_path", "config_path", "lpips_weights", "train_folder", "resume"])
def test_files_that_a_run_reads_are_looked_for(tmp_path: Path, key: str) -> None:
    for name in ("base_model_path", "config_path", "lpips_weights", "train_folder", "resume"):
        (tmp_path / name).touch()
    names = ("base_model_path", "config_path", "lpips_weights", "train_folder", "resume")
    values = {name: str(tmp_path / name) for name in names}
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(SMALL | values))
    config = read_train_config(path)
    config.check_files()
    (tmp_path / key).unlink()
    with pytest.raises(ConfigError) as caught:
        config.check_files()
    assert str(caught.value) == f"{key}: {tmp_path / key} does not exist. Relative paths count from the current folder."


def test_a_base_that_is_made_need_not_be_there(tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    values = {"train_folder": str(tmp_path / "pairs"), "backbone_signature": "hub/id", "base_model_path": "not-there"}
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(SMALL | values))
    read_train_config(path).check_files()
