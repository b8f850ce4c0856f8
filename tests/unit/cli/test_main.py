"""The command line: its documented flags, its exit codes, and where it says what."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lbm_lora import __version__
from lbm_lora.cli.main import COMMANDS, command_for, main, parse
from lbm_lora.errors import ConfigError
from lbm_lora.verbs import verb_named
from standins import TINY, write_base, write_tuned

DOCUMENTED = {
    "base": "--config_path c.yaml --backbone_signature b --device cuda --torch_dtype bf16 --save_path o.ckpt "
    "--test_baseline --verbose --tuned_model_path t",
    "extract": "--base_model_path b --tuned_model_path t --save_to l.safetensors --target_coverage full --rank 32 "
    "--conv_rank 16 --device cuda --save_precision bf16 --min_diff 0.001 --create_base_model --backbone_signature b "
    "--verbose --include attn1 ff.net --exclude attn2",
    "validate": "--base_model_path b --tuned_model_path t --lora_path l --images i --report r --fail_above 0.05 "
    "--lora_alpha_is rank",
    "infer": "--base_model_path b --lora_path l l2 --source_image s --output_path o --num_inference_steps 1 "
    "--lora_scale 1.0 0.5 --device cuda --torch_dtype bf16 --backbone_signature b --attention_only --verbose --debug "
    "--lora_alpha_is file",
    "fuse": "--base_model_path b --lora_path l l2 --lora_scale 1.0 -0.5 --save_to o.safetensors --lora_alpha_is auto",
    "refine": "--base_model_path b --tuned_model_path t --lora_path l --images i --save_to o.safetensors "
    "--lora_alpha_is rank",
    "layers": "--model_path m --patterns attn1 ff.net",
}


@pytest.mark.parametrize("command", DOCUMENTED)
@pytest.mark.parametrize("sign", ["_", "-"])
def test_documented_flags_are_accepted_in_both_spellings(command: str, sign: str) -> None:
    words = [w.replace("_", sign) if w.startswith("--") else w for w in DOCUMENTED[command].split()]
    _, output = parse(command, words)
    assert output.verbose == ("--verbose" in words)


def test_flags_of_infer_over_shards() -> None:
    line = (
        "--base_model_path b --source_shards {0..9}.tar b.tar --output_path o --source_key s.jpg --mask_key m.png "
        "--output_format jpg --max_corrupt 0.1 --cache_dir c --device cuda --devices 2 --num_nodes 3 --strategy ddp"
    )
    values, _ = parse("infer", line.split())
    assert values["source_shards"] == ("{0..9}.tar", "b.tar")
    assert values["devices"] == 2
    for flag in ("--source_shards", "--source-shards", "--source_shards=a.tar"):
        assert command_for("infer", ["--seed", "1", flag]) is verb_named("infer --source_shards")
    assert command_for("infer", ["--source_image", "source_shards"]) is verb_named("infer")


@pytest.mark.parametrize("value", ["float", "fp16", "bf16"])
def test_precisions_are_the_documented_words(value: str) -> None:
    values, _ = parse(
        "extract", f"--base_model_path b --tuned_model_path t --save_to l --save_precision {value}".split()
    )
    assert values["save_precision"] == value


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


def test_a_wrong_flag_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["extract", "--rnak", "3"]) == 2
    assert capsys.readouterr() == ("", "error: --rnak is not a flag of extract. Did you mean --rank?\n")


def test_bad_input_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = main(
        [
            "extract",
            "--base_model_path",
            "no.ckpt",
            "--tuned_model_path",
            "t",
            "--save_to",
            str(tmp_path / "l.safetensors"),
        ]
    )
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.startswith("error: no.ckpt does not exist.")
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_json_and_the_quality_gate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    base, tuned, lora = (
        write_base(tmp_path / "base", TINY),
        write_tuned(tmp_path / "tuned", TINY),
        tmp_path / "l.safetensors",
    )
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


@pytest.mark.parametrize("count", ["0", "1025", "100000"])
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
