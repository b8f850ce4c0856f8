"""The workflow `train`: its command line, errors before any work. Whole runs: tests/e2e/test_training.py."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from lbm_lora import errors
from lbm_lora.cli.commands import COMMANDS
from lbm_lora.cli.main import main, parse
from lbm_lora.configs.train import TrainRunConfig
from lbm_lora.errors import MissingExtraError
from lbm_lora.training import fit
from lbm_lora.training.settings import TrainConfig
from lbm_lora.workflows import train
from standins import Lbm

FIRST = ["--path_config", "t.yaml"]


@pytest.fixture
def file(lbm: Lbm, tmp_path: Path) -> Path:
    """A training file for three steps in bf16."""
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.source", "a.target", "b.source", "b.target"):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(pairs / f"{name}.png")
    path = tmp_path / "train.yaml"
    values = {
        "train_folder": str(pairs),
        "validation_folder": str(pairs),
        "base_model_path": str(lbm.base),
        "lora_rank": 2,
        "lora_target_modules": ["attn1"],
        "batch_size": 1,
        "image_size": [64],
        "max_steps": 3,
        "save_interval": 2,
        "num_steps": [1],
        "logger": "none",
        "device": "cpu",
        "save_ckpt_path": str(tmp_path / "run"),
    }
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_command_line_knows_the_keys_that_take_a_list() -> None:
    config, _ = parse("train", [*FIRST, "--image_size", "64", "--seed", "1"])
    assert config.overrides == (("image_size", "[64]\n"), ("seed", "1"))


def test_the_command_line_makes_the_config() -> None:
    config, output = parse("train", [*FIRST, "--seed", "3", "--debug"])
    assert config == TrainRunConfig(path_config=Path("t.yaml"), overrides=(("seed", "3"),))
    assert output.debug


def test_help_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  --{key} " in out for key in TrainConfig.model_fields)
    assert "A class of torch.optim. Default: AdamW." in " ".join(out.split())
    assert "overrides" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lerning_rate", "1"], "--lerning_rate is not a flag of train. Did you mean --learning_rate?"),
        (["--lora_target_modules", "[atn1]"], "pattern 'atn1' matches none of"),
        (["--base_model_path", "no.ckpt"], "base_model_path: no.ckpt does not exist"),
        (["--strategy", "nope"], "strategy: Input should be 'auto', 'ddp' or 'fsdp', got 'nope'."),
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
        train.run(TrainRunConfig(path_config=file))


def test_the_command_is_registered_and_light_to_import() -> None:
    assert COMMANDS["train"].config == "TrainRunConfig"
    code = (
        "import sys, lbm_lora.cli.main as m, lbm_lora.workflows.train; m.parse('train', ['--path_config', 'x']);"
        "print(*[n for n in ('lightning', 'peft', 'diffusers', 'tensorboard') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", ["pictures", "logs"])
def test_a_file_where_the_run_makes_a_folder_is_refused_before_a_model_is_loaded(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setattr(fit, "fit", None)
    path = file.parent / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    assert main(["train", "--path_config", str(file), "--logger", "csv"]) == 2
    assert f"would be in {path}, which is a file" in capsys.readouterr().err
    assert [one for one in (file.parent / "run").rglob("*") if one.is_file()] == [path]
