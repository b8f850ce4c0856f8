"""A training file: both documented generations of it, defaults, overrides, and writing it again."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lbm_lora.errors import ConfigError
from lbm_lora.training.settings.train_config import STATE_NAME, TrainConfig, read_train_config

SHIPPED = Path(__file__).parents[4] / "lora" / "lora_relight_config.yaml"

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
    config = read_train_config(SHIPPED, [("lora_weights_path", "null"), *((k, str(v)) for k, v in examples.items())])
    assert (config.lora_rank, config.lora_conv_rank, config.rank_pattern) == (32, 16, {"ff.net": 16})
    assert config.mask_key == "mask.png"


def test_defaults(tmp_path: Path) -> None:
    config = read_train_config(written(tmp_path, {}))
    assert (config.learning_rate, config.batch_size, config.max_epochs) == (1e-4, 8, 100)
    assert (config.source_key, config.target_key, config.mask_key) == ("source.jpg", "target.jpg", None)
    assert (config.mode, config.init_lora, config.trainable_lora_modules) == ("lora", "default", None)
    assert (config.precision, config.base_dtype, config.resume) == ("bf16-mixed", "bf16", "auto")
    assert (config.latent_loss_weight, config.pixel_loss_weight) == (1.0, 0.0)
    assert config.save_ckpt_path == Path("checkpoints_lora")
    assert not config.has_validation


def test_it_is_frozen(tmp_path: Path) -> None:
    config = read_train_config(written(tmp_path, {}))
    with pytest.raises(ValidationError, match="frozen"):
        config.batch_size = 2  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("values", "key", "expected"),
    [
        ({"precision": 32}, "precision", "32"),
        ({"resume": "never"}, "resume", "never"),
        ({"resume": "runs/state.pt"}, "resume", Path("runs/state.pt")),
        ({"wandb_project": "relight", "logger": "wandb"}, "logger", "wandb"),
        ({"image_size": [256, 512], "image_size_prob": [0.25, 0.75]}, "image_size_prob", (0.25, 0.75)),
        ({"optimizer": "SGD", "optimizer_kwargs": {"momentum": 0.9}}, "optimizer_kwargs", {"momentum": 0.9}),
        ({"optimizer_kwargs": {"betas": [0.9, 0.95]}}, "optimizer_kwargs", {"betas": [0.9, 0.95]}),
        ({"init_lora": "pissa_niter_4"}, "init_lora", "pissa_niter_4"),
        ({"mode": "full", "lora_rank": None}, "mode", "full"),
        ({"lora_rank": None, "lora_weights_path": "a.safetensors", "lora_dropout": 0.1}, "lora_dropout", 0.1),
        ({"gradient_clip": None}, "gradient_clip", None),
        ({"train_shards": ["pipe:cat a.tar"], "train_folder": None, "allow_pipe": True}, "train_folder", None),
        ({"cache_latents": True, "cache_dir": "cache"}, "cache_dir", Path("cache")),
    ],
)
def test_values_that_are_read(tmp_path: Path, values: dict[str, Any], key: str, expected: object) -> None:
    config = read_train_config(written(tmp_path, values))
    assert getattr(config, key) == expected
    assert type(getattr(config, key)) is type(expected) or isinstance(expected, Path)


def test_small_numbers_need_no_dot(tmp_path: Path) -> None:
    text = yaml.safe_dump(SMALL) + "learning_rate: 3e-5\noptimizer_kwargs: {eps: 1E-6, weight_decay: -0e0}\n"
    config = read_train_config(written(tmp_path, text))
    assert config.learning_rate == 3e-5
    assert config.optimizer_kwargs == {"eps": 1e-6, "weight_decay": 0.0}


def test_overrides_take_the_place_of_the_files_values(tmp_path: Path) -> None:
    path = written(tmp_path, {"batch_size": 4, "rank_pattern": {"attn1": 8}})
    overrides = [
        ("batch-size", "2"),
        ("batch_size", "3"),
        ("rank_pattern.ff.net", "16"),
        ("optimizer_kwargs.weight_decay", "1e-2"),
        ("trainable_lora_modules", "[attn1, 're:attn2$']"),
        ("lora_rank", "6"),
        ("resume", "never"),
        ("wandb-project", "relight"),
    ]
    config = read_train_config(path, overrides)
    assert config.batch_size == 3
    assert config.rank_pattern == {"attn1": 8, "ff.net": 16}
    assert config.optimizer_kwargs == {"weight_decay": 0.01}
    assert config.trainable_lora_modules == ("attn1", "re:attn2$")
    assert (config.lora_rank, config.resume, config.logger) == (6, "never", "wandb")
    assert read_train_config(path).batch_size == 4


def test_null_removes_a_value(tmp_path: Path) -> None:
    path = written(tmp_path, {"lora_rank": None, "lora_weights_path": "lora.safetensors"})
    config = read_train_config(path, [("lora_weights_path", "null"), ("lora_rank", "8")])
    assert (config.lora_weights_path, config.lora_rank) == (None, 8)


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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"wandb_project": "relight", "logger": "csv"},
            "wandb_project needs logger wandb, but it is csv.",
        ),
        ({"logger": "wandb"}, "logger wandb needs wandb_project."),
        ({"num_nodes": 10**9}, "num_nodes: Input should be less than or equal to 1024, got 1000000000."),
        ({"device": "cuda:1", "devices": 2}, "device cuda:1 is a single device, but devices is 2."),
        ({"num_steps": []}, "num_steps is empty. Give at least one, as in [1, 2, 4]."),
        (
            {"best_metric": "psnr"},
            "best_metric psnr needs validation pairs. Give validation_shards or validation_folder.",
        ),
    ],
)
def test_runs_that_cannot_be(said: Said, values: dict[str, Any], message: str) -> None:
    assert said(values) == f"train.yaml: {message}"


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
    text = str(caught.value)
    assert text.startswith(f"{key}: {tmp_path / key} does not exist. ")
    assert text.endswith(" Relative paths start from the current folder.")


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


def test_a_base_that_is_made_need_not_be_there(tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    values = {"train_folder": str(tmp_path / "pairs"), "backbone_signature": "hub/id", "base_model_path": "not-there"}
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(SMALL | values))
    read_train_config(path).check_files()


def test_a_tilde_in_a_path_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    values = {"save_ckpt_path": "~/run", "resume": "~/resume.pt", "cache_dir": "~/cache"}
    config = read_train_config(written(tmp_path, values))
    paths = (config.save_ckpt_path, config.resume, config.cache_dir)
    assert paths == (Path("/home/me/run"), Path("/home/me/resume.pt"), Path("/home/me/cache"))


@pytest.mark.parametrize("key", ["save_ckpt_path", "train_folder", "config_path", "cache_dir"])
def test_an_empty_text_is_no_path(key: str, tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    with pytest.raises(ConfigError, match=rf"{key}.*needs a value, got an empty text"):
        read_train_config(path, [(key, "''")])
