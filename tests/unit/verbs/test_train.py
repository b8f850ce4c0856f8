"""`train`: keys of files and of Python, and errors before any work. Whole runs: tests/e2e/test_training.py."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lbm_lora import errors
from lbm_lora.adapter import Adapter
from lbm_lora.cli.main import main
from lbm_lora.errors import ConfigError, MissingExtraError
from lbm_lora.training import fit
from lbm_lora.training.settings import TrainConfig
from lbm_lora.verbs.train import train
from standins import Lbm


@pytest.fixture
def keys(lbm: Lbm, write_images: Callable[[int], Path], tmp_path: Path) -> dict[str, Any]:
    """Of a training of one step."""
    pairs = write_images(2)
    for name in ("0", "1"):
        shutil.copy(pairs / f"{name}.png", pairs / f"{name}.target.png")
        (pairs / f"{name}.png").rename(pairs / f"{name}.source.png")
    return {
        "train_folder": pairs,
        "base_model_path": lbm.base,
        "lora_rank": 2,
        "lora_target_modules": "attn1",
        "batch_size": 1,
        "image_size": 64,
        "max_steps": 1,
        "logger": "none",
        "device": "cpu",
        "precision": "32",
        "base_dtype": torch.float32,
        "save_ckpt_path": tmp_path / "run",
    }


@pytest.fixture
def file(keys: dict[str, Any], tmp_path: Path) -> Path:
    values = {key: str(value) if isinstance(value, Path) else value for key, value in keys.items()}
    values |= {"image_size": [64], "lora_target_modules": ["attn1"], "base_dtype": "float"}
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_training_by_keys_alone(keys: dict[str, Any], tmp_path: Path) -> None:
    result = train(**keys, also="comfyui")
    assert (result.step, result.folder) == (1, tmp_path / "run")
    assert result.last is not None
    assert {module.rank for module in Adapter.load(result.last).modules.values()} == {2}
    assert [twin.path.name for twin in result.twins] == ["last.comfyui.safetensors"]


def test_keys_take_precedence_over_the_file(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.yaml: max_steps: .* got -1\."):
        train(file, max_steps=-1)
    with pytest.raises(ConfigError, match=r"^train: lora_rank: Input should be a valid integer, got 'x'\."):
        train({"lora_rank": "x", "train_folder": "x", "base_model_path": "b", "max_steps": 1})
    with pytest.raises(ConfigError, match=r"unknown key 'lora_rnk'\. Did you mean 'lora_rank'\?"):
        train(file, lora_rnk=2)


def test_a_full_fine_tune_has_no_twins(file: Path) -> None:
    full: dict[str, Any] = {"mode": "full", "lora_rank": None, "lora_target_modules": None}
    with pytest.raises(ConfigError, match="also is for LoRAs, but mode full trains a checkpoint"):
        train(file, also="comfyui", **full)


def test_the_file_of_a_copied_run_does_not_train_over_the_first_one(keys: dict[str, Any], tmp_path: Path) -> None:
    train(**keys)
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "run", copy)
    first = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match=r"the folder was copied or moved\."):
        train(copy / "config.yaml", max_steps=2)
    assert train(copy / "config.yaml", max_steps=2, save_ckpt_path=copy).step == 2
    assert {path: path.read_bytes() for path in first} == first


def test_help_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  --{key} " in out for key in TrainConfig.model_fields)
    assert "is_typed" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lerning_rate", "1"], "--lerning_rate is not a flag of train. Did you mean --learning_rate?"),
        (["--lora_target_modules", "[atn1]"], "pattern 'atn1' matches none of"),
        (["--base_model_path", "no.ckpt"], "base_model_path: no.ckpt does not exist"),
        (["--strategy", "nope"], "command line: strategy: Input should be 'auto', 'ddp' or 'fsdp', got 'nope'."),
        (["--batch_size", "[1"], "command line: batch_size "),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    file: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--path_config", str(file), *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("error: ") == 1
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name in ("peft", "lightning") else True)
    with pytest.raises(MissingExtraError, match=r'training needs lightning and peft, .*"lbm-lora\[train\]"$'):
        train(file)


@pytest.mark.parametrize("name", ["pictures", "logs"])
def test_a_file_where_the_run_makes_a_folder_is_refused_before_a_model_is_loaded(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setattr(fit, "fit", None)
    path = file.parent / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    words = ["--logger", "csv", "--validation_folder", yaml.safe_load(file.read_text())["train_folder"]]
    assert main(["train", "--path_config", str(file), *words]) == 2
    assert f"would be in {path}, which is a file" in capsys.readouterr().err
