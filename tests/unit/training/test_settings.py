"""A training file: both documented generations of it, defaults, overrides, writing it again, and what is refused."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lbm_lora.errors import ConfigError
from lbm_lora.training.settings import STATE_NAME, TrainConfig, read_train_config

SHIPPED = Path(__file__).parents[3] / "lora" / "lora_relight_config.yaml"

FIRST_GENERATION = """
train_shards: ["data/train-{000000..000009}.tar"]
validation_shards: ["data/validation-000000.tar"]
base_model_path: lora/checkpoints/exact_base.safetensors
lora_rank: 32
lora_alpha: 32
lora_target_modules: [attn1, attn2, up_blocks, down_blocks]
wandb_project: lbm-lora-relighting
batch_size: 4
learning_rate: 2e-4
optimizer: AdamW
save_ckpt_path: ./checkpoints_lora/relighting
log_interval: 100
max_epochs: 50
save_interval: 1000
num_steps: [1, 2, 4]
"""

Said = Callable[..., str]
SMALL: dict[str, Any] = {"train_folder": "pairs", "base_model_path": "base.safetensors", "lora_rank": 4}


def written(folder: Path, values: dict[str, Any] | str) -> Path:
    path = folder / "train.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(SMALL | values))
    return path


def test_the_shipped_file_continues_a_lora() -> None:
    config = read_train_config(SHIPPED)
    assert config.train_shards == ("data/relighting/train-{000000..000009}.tar",)
    assert config.validation_shards == ("data/relighting/validation-000000.tar",)
    assert config.base_model_path == Path("lora/checkpoints/exact_base.safetensors")
    assert config.lora_weights_path == Path("lora/checkpoints/my_lora.safetensors")
    assert config.trainable_lora_modules == ("attn1", "attn2", "up_blocks")
    assert (config.wandb_project, config.logger) == (None, "tensorboard")
    assert (config.batch_size, config.learning_rate, config.optimizer) == (4, 2e-4, "AdamW")
    assert config.save_ckpt_path == Path("checkpoints_lora/relighting")
    assert (config.log_interval, config.max_epochs, config.save_interval) == (100, 50, 1000)
    assert config.num_steps == (1, 2, 4)
    assert config.has_validation


def test_the_first_generation_trains_a_new_lora(tmp_path: Path) -> None:
    config = read_train_config(written(tmp_path, FIRST_GENERATION))
    assert (config.lora_rank, config.lora_alpha, config.lora_weights_path) == (32, 32.0, None)
    assert config.lora_target_modules == ("attn1", "attn2", "up_blocks", "down_blocks")
    assert config.learning_rate == 2e-4  # YAML 1.1 would read the text "2e-4"
    assert config.logger == "wandb"  # by its wandb_project


EXAMPLES = {
    "train_folder", "validation_folder", "mask_key", "lora_rank", "lora_conv_rank", "lora_alpha", "lora_conv_alpha",
    "lora_target_modules", "rank_pattern", "alpha_pattern", "backbone_signature",
}  # fmt: skip
"""The commented keys of the shipped file that do not stand there with their defaults."""


def commented() -> dict[str, Any]:
    """The optional keys in the shipped file's comments."""
    lines = re.findall(r"^# ([a-z_]+: .*)$", SHIPPED.read_text(), re.MULTILINE)
    found = [line for line in lines if line.partition(":")[0] in TrainConfig.model_fields]
    return yaml.safe_load("\n".join(found))


def test_the_shipped_file_names_every_key_with_its_default() -> None:
    keys = commented()
    assert set(keys) | set(yaml.safe_load(SHIPPED.read_text())) == set(TrainConfig.model_fields)
    defaults = TrainConfig.model_validate(SMALL).model_dump(mode="json")
    assert {key: value for key, value in keys.items() if key not in EXAMPLES} == {
        key: defaults[key] for key in keys if key not in EXAMPLES
    }


def test_the_shipped_files_examples_make_a_new_lora() -> None:
    examples = {key: commented()[key] for key in EXAMPLES - {"train_folder", "validation_folder"}}
    config = read_train_config(SHIPPED, {"lora_weights_path": None, **examples})
    assert (config.lora_rank, config.lora_conv_rank, config.rank_pattern) == (32, 16, {"ff.net": 16})
    assert config.mask_key == "mask.png"


@pytest.mark.parametrize(
    ("values", "key", "expected"),
    [
        ({"precision": 32}, "precision", "32"),
        ({"resume": "runs/state.pt"}, "resume", "runs/state.pt"),
        ({"wandb_project": "relight", "logger": "wandb"}, "logger", "wandb"),
        ({"image_size": [256, 512], "image_size_prob": [0.25, 0.75]}, "image_size_prob", (0.25, 0.75)),
        ({"init_lora": "pissa_niter_4"}, "init_lora", "pissa_niter_4"),
        ({"mode": "full", "lora_rank": None}, "mode", "full"),
        ({"lora_rank": None, "lora_weights_path": "a.safetensors", "lora_dropout": 0.1}, "lora_dropout", 0.1),
        ({"train_shards": ["pipe:cat a.tar"], "train_folder": None, "allow_pipe": True}, "train_folder", None),
    ],
)
def test_values_that_are_read(tmp_path: Path, values: dict[str, Any], key: str, expected: object) -> None:
    config = read_train_config(written(tmp_path, values))
    assert getattr(config, key) == expected
    assert type(getattr(config, key)) is type(expected) or isinstance(expected, Path)


def test_overrides_take_the_place_of_the_files_values(tmp_path: Path) -> None:
    path = written(tmp_path, {"batch_size": 4, "rank_pattern": {"attn1": 8}})
    keys = {
        "batch_size": 3,
        "rank_pattern.ff.net": 16,
        "optimizer_kwargs.weight_decay": 1e-2,
        "trainable_lora_modules": ["attn1", "re:attn2$"],
        "lora_rank": 6,
        "resume": "never",
        "wandb_project": "relight",
    }
    config = read_train_config(path, keys)
    assert config.batch_size == 3
    assert config.rank_pattern == {"attn1": 8, "ff.net": 16}
    assert config.optimizer_kwargs == {"weight_decay": 0.01}
    assert config.trainable_lora_modules == ("attn1", "re:attn2$")
    assert (config.lora_rank, config.resume, config.logger) == (6, "never", "wandb")
    assert read_train_config(path).batch_size == 4


def test_writing_and_reading_gives_the_same(tmp_path: Path) -> None:
    for path in (SHIPPED, written(tmp_path, FIRST_GENERATION)):
        config = read_train_config(path)
        again = tmp_path / "again.yaml"
        again.write_text(config.to_yaml())
        assert read_train_config(again) == config
        assert set(yaml.safe_load(config.to_yaml())) == set(TrainConfig.model_fields)


@settings(max_examples=15)
@example(learning_rate=1e-5, decay=0.5, ranks={}, shard="0E0")
@given(
    learning_rate=st.floats(min_value=1e-12, max_value=10),
    decay=st.floats(min_value=0.1, max_value=1, exclude_max=True),
    ranks=st.dictionaries(st.text("abc.*:é", min_size=1, max_size=8), st.integers(1, 64), max_size=3),
    shard=st.text(min_size=1, max_size=12).filter(lambda text: text.isprintable()),
)
def test_any_values_are_written_and_read(
    tmp_path: Path, learning_rate: float, decay: float, ranks: dict[str, int], shard: str
) -> None:
    values = {"learning_rate": learning_rate, "ema_decay": decay, "rank_pattern": ranks}
    config = TrainConfig.model_validate({"train_shards": (shard,), "base_model_path": "b", "lora_rank": 4} | values)
    path = tmp_path / "any.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert read_train_config(path) == config


def test_files_that_a_run_reads_are_looked_for(tmp_path: Path) -> None:
    names = ("base_model_path", "config_path", "lpips_weights", "train_folder", "resume")
    config = read_train_config(written(tmp_path, {name: str(tmp_path / name) for name in names}))
    for name in names:
        (tmp_path / name).touch()
    config.check_files()
    for name in names:
        (tmp_path / name).unlink()
        with pytest.raises(ConfigError) as caught:
            config.check_files()
        assert str(caught.value).startswith(f"{name}: {tmp_path / name} does not exist. ")
        (tmp_path / name).touch()


def test_a_run_with_a_state_of_its_own_goes_on_without_the_one_that_it_began_with(tmp_path: Path) -> None:
    values = SMALL | {"resume": str(tmp_path / "gone.pt"), "save_ckpt_path": str(tmp_path / "run")}
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(values))
    config = read_train_config(path).model_copy(update={"train_folder": tmp_path, "base_model_path": path})
    with pytest.raises(ConfigError, match=r"resume: .*gone\.pt does not exist\."):
        config.check_files()
    config.save_ckpt_path.mkdir()
    (config.save_ckpt_path / STATE_NAME).touch()
    config.check_files()


def test_a_tilde_in_a_path_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    values = {"save_ckpt_path": "~/run", "resume": "~/resume.pt", "cache_dir": "~/cache"}
    config = read_train_config(written(tmp_path, values))
    paths = (config.save_ckpt_path, config.resume, config.cache_dir)
    assert paths == (Path("/home/me/run"), "/home/me/resume.pt", Path("/home/me/cache"))


@pytest.fixture
def said(tmp_path: Path) -> Callable[..., str]:
    """`said({"batch_size": 0})`: the error of a small file with these values, without its place."""

    def error(values: dict[str, Any] | str, keys: Mapping[str, Any] | None = None) -> str:
        path = tmp_path / "train.yaml"
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(SMALL | values))
        with pytest.raises(ConfigError) as caught:
            read_train_config(path, keys, is_typed=True)
        return str(caught.value).replace(str(path), "train.yaml")

    return error


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_folder": None}, "no training data is given"),
        ({"train_shards": ["a.tar"]}, "train_shards and train_folder cannot both be given"),
        ({"validation_shards": []}, "validation_shards: Give at least one value, or remove the key, got []."),
        ({"validation_shards": ["pipe:cat a.tar"]}, "validation_shards: 'pipe:cat a.tar' runs a shell command."),
        ({"image_size_prob": [0.5, 0.5]}, "image_size_prob has 2 values, but image_size has 1. Give one for each."),
        ({"image_size": [64, 128], "image_size_prob": [0.5, 0.25]}, "image_size_prob must add up to 1, got 0.75."),
        ({"mask_key": "source.jpg"}, "source_key, target_key and mask_key must differ"),
        ({"cache_latents": True, "cache_dir": "c", "flip": True}, "cache_latents cannot be used with flip"),
        ({"cache_latents": True}, "cache_latents needs cache_dir"),
        ({"base_model_path": None}, "no base is given"),
        ({"lora_rank": None}, "there is no LoRA to train"),
        ({"lora_weights_path": "lora.safetensors"}, "lora_weights_path and lora_rank cannot both be given: the file"),
        ({"mode": "full"}, "mode full trains every parameter, but lora_rank needs mode lora. Remove it."),
        ({"mode": "full", "lora_rank": None, "lora_plus_ratio": 16.0}, "mode full trains every parameter"),
        ({"lora_alpha_is": "file"}, "lora_alpha_is needs lora_weights_path"),
        ({"rank_pattern": {"re:(": 4}}, "pattern 're:(': the regular expression does not compile: missing )"),
        ({"init_lora": "pisa"}, "unknown init_lora 'pisa'. Choose one of default, gaussian"),
        ({"init_lora": "pissa_niter_101"}, "unknown init_lora 'pissa_niter_101'."),
        ({"init_lora": "orthogonal", "lora_rank": 3}, "init_lora orthogonal needs even ranks, but lora_rank is 3."),
        ({"optimizer": "adamw"}, "optimizer 'adamw' is not a class of torch.optim. Did you mean 'AdamW'?"),
        ({"optimizer": "LBFGS"}, "optimizer LBFGS is not supported: it evaluates the loss several times in a step."),
        ({"optimizer_kwargs": {"weight_decy": 0}}, "optimizer_kwargs.weight_decy is not an argument of AdamW. Did you"),
        ({"optimizer_kwargs": {"lr": 1.0}}, "optimizer_kwargs.lr is not allowed. Use learning_rate."),
        ({"optimizer_kwargs": {"eps": -1}}, "AdamW rejects optimizer_kwargs {'eps': -1}: Invalid epsilon value: -1."),
        ({"warmup_steps": 10, "max_steps": 10}, "warmup_steps is 10 and max_steps 10: the warm-up would never end."),
        ({"latent_loss_weight": 0}, "latent_loss_weight and pixel_loss_weight are both 0."),
        ({"timestep_sampling": "uniform", "prob": [1.0]}, "prob needs timestep_sampling custom_timesteps, but it is"),
        ({"wandb_project": "relight", "logger": "csv"}, "wandb_project needs logger wandb, but it is csv."),
        ({"logger": "wandb"}, "logger wandb needs wandb_project."),
        ({"device": "cuda:1", "devices": 2}, "device cuda:1 is a single device, but devices is 2."),
        ({"best_metric": "psnr"}, "best_metric psnr needs validation pairs."),
        ({"batch_siez": 3}, "unknown key 'batch_siez'. Did you mean 'batch_size'?"),
        (
            {"conditioning_images_keys": ["a"]},
            "key 'conditioning_images_keys': training with conditioning images is not",
        ),
        ({"batch_size": "8"}, "batch_size: Input should be a valid integer, got '8'."),
        ({"batch_size": True}, "batch_size: Input should be a valid integer, got True."),
        ({"batch_size": 0}, "batch_size: Input should be greater than or equal to 1, got 0."),
        ({"learning_rate": float("nan")}, "learning_rate: Input should be a finite number, got nan."),
        ({"train_shards": "a.tar"}, "train_shards: Input should be a list, as in [a, b], got 'a.tar'."),
        ({"num_steps": [1, "two"]}, "num_steps.1: Input should be a valid integer, got 'two'."),
        ({"latent_loss_type": "l3"}, "latent_loss_type: Input should be 'l2' or 'l1', got 'l3'. Did you mean 'l2'?"),
        ({"precision": 16}, "precision: Input should be 'bf16-mixed' or '32', got 16."),
        ({"config_path": ""}, "config_path needs a value, got an empty text."),
    ],
)
def test_values_that_are_refused(said: Said, values: dict[str, Any], message: str) -> None:
    assert said(values).startswith(f"train.yaml: {message}")


def test_a_key_unlike_any_lists_the_valid_ones(said: Said) -> None:
    message = said({"zzzzzz": 1})
    assert message.startswith("train.yaml: unknown key 'zzzzzz'. Valid keys: train_shards, validation_shards, ")
    assert message.endswith(", resume.")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (("batch_siez", "3"), "command line: unknown key 'batch_siez'. Did you mean 'batch_size'?"),
        (("batch_size", "many"), "command line: batch_size: Input should be a valid integer, got 'many'."),
        (
            ("trainable_lora_modules", "attn1"),
            "command line: trainable_lora_modules: Input should be a list, as in [a, b], got 'attn1'.",
        ),
        (("lora_rank.attn1", "3"), "command line: lora_rank.attn1: 'lora_rank' is 4, which has no key 'attn1'."),
    ],
)
def test_overrides(said: Said, override: tuple[str, str], message: str) -> None:
    key, text = override
    assert said({}, {key: yaml.safe_load(text)}) == message


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
