"""The command line: its documented flags, its exit codes, and where it says what."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lbm_lora import __version__
from lbm_lora.cli.__main__ import main as start
from lbm_lora.cli.main import COMMANDS, command_for, main, parse
from lbm_lora.errors import ConfigError
from standins import TINY, write_base, write_tuned


def test_a_flag_has_two_spellings_and_values_have_the_parameters_names() -> None:
    line = "--base{}model{}path b --lora_path l l2 --lora{}scale 1.0 -0.5 --save_to o.safetensors --verbose"
    for sign in "_-":
        values, output = parse("fuse", line.replace("{}", sign).split())
        assert values == {
            "base": Path("b"), "lora": (Path("l"), Path("l2")), "lora_scale": (1.0, -0.5),
            "save_to": Path("o.safetensors"),
        }  # fmt: skip
        assert output.verbose


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {command}" in out for command in COMMANDS)
    assert main(["help"]) == 0
    assert capsys.readouterr().out == out


@pytest.mark.parametrize("command", ["extract", "data pack", "data"])
def test_help_before_a_command_is_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    asked = capsys.readouterr()
    assert asked.out.startswith(f"usage: lbm-lora {command} ")
    assert main(["help", *command.split()]) == 0
    assert capsys.readouterr() == asked


def test_a_family_without_its_second_word_is_explained_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data"]) == 2
    assert "data pack" in capsys.readouterr().out
    assert main(["data", "pak", "x"]) == 2
    assert capsys.readouterr().err == "error: 'data pak' is not a command of lbm-lora. Did you mean 'data pack'?\n"


def test_a_reader_that_has_seen_enough_ends_the_help() -> None:
    command = f"{shlex.quote(sys.executable)} -m lbm_lora.cli.main train --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout in ("0\n", "141\n")
    assert done.stderr == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lbm-lora {__version__}\n"


def test_no_command_shows_the_help_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: lbm-lora COMMAND" in capsys.readouterr().out


def test_a_wrong_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exract"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: 'exract' is not a command of lbm-lora. Did you mean 'extract'?\n"


def test_bad_input_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = f"extract --base_model_path no.ckpt --tuned_model_path t --save_to {tmp_path / 'l.safetensors'}"
    assert main(line.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: no.ckpt does not exist.")
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_json_and_the_quality_gate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lora = tmp_path / "l.safetensors"
    base, tuned = write_base(tmp_path / "base", TINY), write_tuned(tmp_path / "tuned", TINY)
    pair = ["--base_model_path", str(base), "--tuned_model_path", str(tuned)]
    assert main(["extract", *pair, "--save_to", str(lora), "--rank", "1", "--conv_rank", "1", "--json"]) == 0
    extracted = json.loads(capsys.readouterr().out)
    assert extracted["adapter"] == lora.as_posix()
    error = extracted["report"]["relative_error"]
    assert 0 < error < 1

    validate = ["validate", *pair, "--lora_path", str(lora), "--report", str(tmp_path / "r"), "--json"]
    assert main([*validate, "--fail_above", str(error * 1.01)]) == 0
    capsys.readouterr()
    assert main([*validate, "--fail_above", str(error * 0.99)]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["failures"]
    assert "above --fail_above" in captured.err


def test_help_and_usage_errors_load_nothing_heavy() -> None:
    script = """
import sys
from lbm_lora.cli.main import COMMANDS, main

codes = [main([*command.split(), "--help"]) for command in [*COMMANDS, "infer --source_shards"]]
codes += [main([*command.split(), "--no_such_flag", "1"]) for command in COMMANDS]
heavy = {"torch", "numpy", "safetensors", "diffusers", "transformers", "lightning", "PIL", "torchmetrics", "peft"}
loaded = sorted(heavy & sys.modules.keys())
print(codes, loaded, file=sys.stderr)
sys.exit(bool(loaded or set(codes) != {0, 2}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("count", ["0", "1025"])
def test_threads_are_bounded(count: str) -> None:
    with pytest.raises(ConfigError, match=rf"threads must be a whole number from 1 to 1024, got '{count}'"):
        parse("layers", ["--model_path", "m", "--threads", count])


def test_a_current_folder_that_was_removed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["inspect", "x.safetensors", "--report", "page"]) == 2
    assert capsys.readouterr().err == (
        "error: the current folder was removed. Change to another one, and run the command again.\n"
    )


def test_an_interrupt_while_it_starts_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("lbm_lora.cli.main.main", interrupted)
    assert start() == 130
    assert capsys.readouterr() == ("", "error: interrupted.\n")


@pytest.mark.parametrize("flag", ["--source_shards", "--source-shards", "--source_shards=a.tar"])
def test_infer_over_shards_is_a_command_of_its_own(flag: str) -> None:
    assert command_for("infer", ["--seed", "1", flag]) is not command_for("infer", [])
    assert command_for("infer", ["--source_image", "source_shards"]) is command_for("infer", [])
    assert command_for("extract", [flag]) is command_for("extract", [])
