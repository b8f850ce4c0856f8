"""The workflow `doctor`, and its command line: every command can be looked at, nothing is run."""

import json
import shlex
from pathlib import Path

import pytest

from lbm_lora import bundled
from lbm_lora.cli.commands import COMMANDS, INFER_SHARDS
from lbm_lora.cli.main import main
from lbm_lora.configs.doctor import DoctorConfig
from lbm_lora.configs.fuse import FuseConfig
from lbm_lora.configs.train import TrainRunConfig
from lbm_lora.workflows import doctor
from lbm_lora.workflows.doctor import Diagnosis, needs_of, run

MODEL = bundled.TUNED / "model.safetensors"
FUSE = f"fuse --base_model_path {MODEL.as_posix()} --lora_path {MODEL.as_posix()} --save_to fused.safetensors"


@pytest.fixture(autouse=True)
def healthy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without notes, and an empty folder."""
    monkeypatch.setattr(doctor, "machine_checks", lambda: ())
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("example", [one for command in (*COMMANDS.values(), INFER_SHARDS) for one in command.examples])
def test_every_command_can_be_looked_at(example: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inner = shlex.split(example)[1:]
    code = main(["doctor", "--json", "--", *inner])
    found = json.loads(capsys.readouterr().out)
    assert code == int(found["problems"] > 0)
    assert {one["level"] for one in found["command"]["checks"]} <= {"ok", "note", "problem"} if found["command"] else 1
    assert list(tmp_path.iterdir()) == []


def test_a_problem_of_the_command_is_exit_code_1_and_its_remedy_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--", *FUSE.split()]) == 1
    out, err = capsys.readouterr()
    assert "PROBLEM  --lora_path" in out
    assert "not a LoRA" in " ".join(out.split())
    assert out.endswith("1 problem found. Nothing was run.\n")
    assert err.endswith("error: 1 problem found.\n")


def test_without_a_command_the_machine_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.startswith("this machine\n\nNo problem found.")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--", "fuse", "--rank", "3"], "--rank is not a flag of fuse. "),
        (["fuse --save_to x.safetensors"], "fuse needs --base_model_path CHECKPOINT and --lora_path LORA ..."),
        (["fused"], "'fused' is not a command of lbm-lora. Did you mean 'fuse'?"),
        (["--jsn", "fuse"], "--jsn is not a flag of doctor. Did you mean --json?"),
        (["fuse", "--help"], "The help of fuse is `lbm-lora fuse --help`"),
    ],
)
def test_usage_errors_are_those_of_the_command(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *words]) == 2
    assert line in capsys.readouterr().err


def test_a_training_file_is_read_and_its_errors_are_problems(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("lora_rankk: 8\n", encoding="utf-8")
    refused = needs_of(TrainRunConfig(path_config=path))
    assert [one.level for one in refused.checks] == ["problem"]
    assert "lora_rank" in str(refused.checks[0].remedy)
    values = f"base_model_path: {MODEL.as_posix()}\ntrain_folder: {bundled.PAIRS.as_posix()}\nlora_rank: 8\n"
    path.write_text(f"{values}save_ckpt_path: run\nmax_steps: 100\n", encoding="utf-8")
    fine = needs_of(TrainRunConfig(path_config=path))
    assert {one.level for one in fine.checks} == {"ok"}
    assert fine.memory is not None
    assert fine.disk > 1_000_000


def test_a_refusal_that_two_checks_find_is_told_once() -> None:
    fused = FuseConfig(base_model_path=MODEL, lora_path=(), save_to=MODEL)
    result = run(DoctorConfig(parsed=fused))
    assert isinstance(result, Diagnosis)
    assert result.problems == 1
    assert [str(one) for one in result.failures] == ["1 problem found."]
