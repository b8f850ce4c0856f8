"""Training by its command lines, killed at any moment, and by several processes."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lbm_lora
from lbm_lora import bundled, load_adapter
from lbm_lora.adapter import Adapter
from lbm_lora.cli.main import main
from standins import TINY, write_base, write_lbm

pytestmark = pytest.mark.e2e

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
LBM_LORA = [sys.executable, "-m", "lbm_lora.cli.main"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TINY base in fp32."""
    return write_base(tmp_path_factory.mktemp("tiny"), TINY, dtype=torch.float32)


@pytest.fixture
def file(tiny: Path, tmp_path: Path) -> Callable[..., Path]:
    """`file(max_steps=3)`: a training file for a short run on the TINY base, into `tmp_path / "run"`."""

    def write(**values: Any) -> Path:
        path = tmp_path / "train.yaml"
        defaults = {
            "train_folder": str(bundled.PAIRS),
            "base_model_path": str(tiny),
            "lora_rank": 2,
            "batch_size": 2,
            "image_size": [64],
            "learning_rate": 1e-3,
            "precision": "32",
            "base_dtype": "float",
            "device": "cpu",
            "save_ckpt_path": str(tmp_path / "run"),
            "save_interval": 2,
            "log_interval": 1,
            "max_steps": 5,
            "logger": "none",
        }
        path.write_text(yaml.safe_dump(defaults | values))
        return path

    return write


def run(words: list[str], *, folder: Path | None = None, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        words, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def tensors(adapter: Adapter) -> dict[str, torch.Tensor]:
    found = {f"{name}.up": module.up for name, module in adapter.modules.items()}
    found |= {f"{name}.down": module.down for name, module in adapter.modules.items()}
    return found | {str(name): delta for name, delta in adapter.dense.items()}


def distance(one: Path, other: Path) -> float:
    """Relative Frobenius distance of two adapters, all tensors together."""
    first, second = tensors(load_adapter(one)), tensors(load_adapter(other))
    assert first.keys() == second.keys()
    apart = sum(float((first[name] - second[name]).square().sum()) for name in first)
    return (apart / sum(float(value.square().sum()) for value in first.values())) ** 0.5


def test_the_lines_of_the_mini_file_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack, check, train, infer: the lines in the head of lora_mini_config.yaml, with fewer steps and one image."""
    root = Path(__file__).parents[2]
    for name in ("src", "lora"):
        (tmp_path / name).symlink_to(root / name)
    monkeypatch.chdir(tmp_path)
    head = (root / "lora/lora_mini_config.yaml").read_text().replace("\\\n#", "")
    page = (root / "docs/training.md").read_text().replace("\\\n", "")
    lines = re.findall(r"^#   lbm-lora (.*)$", head, flags=re.MULTILINE)
    shown = re.findall(r"^lbm-lora (.*)$", page, flags=re.MULTILINE)
    assert [line.split() for line in lines] == [line.split() for line in shown[1:5]]
    fewer = ["", "", " --max_steps 2 --save_interval 2 --log_interval 1 --validation_samples 1", ""]
    for line, more in zip(lines, fewer, strict=True):
        words = shlex.split(line.replace("/*.source.png", "/lemon-02*.source.png") + more)
        assert main(words) == 0, words
    assert {path.name for path in (tmp_path / "mini/run/pictures").iterdir()} == {"step-000000.png", "step-000002.png"}
    assert {path.name for path in (tmp_path / "mini/out").iterdir()} == {
        "lemon-02-dawn-to-sunset.png",
        "lemon-02-dawn-to-sunset_compare.png",
    }


@pytest.mark.slow
def test_the_shipped_file_trains_the_bundled_model(documented_folder: Path) -> None:
    """Steps 0 and 1, the bundled pairs as shards, and the documented training line with a few overrides."""
    folder, lora = documented_folder, documented_folder / "lora/checkpoints/my_lora.safetensors"
    tuned = folder / "examples/inference/ckpts/relighting/model.safetensors"
    if not lora.exists():
        made = lbm_lora.make_base(lora.with_name("exact_base.ckpt"), config_path=tuned.with_name("config.yaml"))
        lbm_lora.extract(made.base.ckpt, tuned, save_to=lora, rank=8)
    before = load_adapter(lora)
    assert main(["data", "pack", str(bundled.PAIRS), "--to", str(folder / "data/pairs"), "--shard_count", "6"]) == 0
    line = (
        "lora/train_lora.py --path_config lora/lora_relight_config.yaml --image_size 128 --batch_size 2 --max_steps 3 "
        "--train_shards data/pairs/pairs-{000000..000001}.tar --validation_shards data/pairs/pairs-000000.tar "
        "--log_interval 1 --validation_samples 2 --num_steps 1 2"
    )
    done = run([sys.executable, *line.split()], folder=folder)
    assert "step 3 of 3: loss" in done.stderr
    assert "Trained 3 of 3 steps" in done.stdout
    assert "steps 2: PSNR" in done.stdout

    made = folder / "checkpoints_lora/relighting"
    after = load_adapter(made / "last.safetensors")
    assert after.modules.keys() == before.modules.keys()
    assert after.dense.keys() == before.dense.keys()
    learning = re.compile("attn1|attn2|up_blocks")
    for name, module in after.modules.items():
        was = before.modules[name]
        same = torch.equal(module.up, was.up.float()) and torch.equal(module.down, was.down.float())
        assert same == (learning.search(name) is None), name
    assert all(torch.equal(delta, before.dense[name].float()) for name, delta in after.dense.items())
    assert (made / "pictures/step-000003.png").exists()
    assert list((made / "logs").glob("events.out.tfevents.*"))

    image = folder / "relit.png"
    source = sorted(bundled.PAIRS.glob("*.source.png"))[0]
    words = ["infer", "--base_model_path", str(lora.with_name("exact_base.safetensors"))]
    words += ["--lora_path", str(made / "best.safetensors"), "--source_image", str(source)]
    words += ["--output_path", str(image)]
    assert main(words) == 0
    assert image.exists()


def test_a_run_by_the_command_line_and_a_longer_one(
    file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = {"validation_folder": str(bundled.PAIRS), "validation_samples": 1, "num_steps": [1]}
    path = file(max_steps=3, precision="bf16-mixed", base_dtype="bf16", lora_target_modules=["attn1"], **pairs)
    assert main(["train", "--path_config", str(path), "--max_steps", "2", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["step"], made["total"], made["stopped_by"]) == (2, 2, "")
    assert made["last"] == (tmp_path / "run/last.safetensors").as_posix()
    assert made["scores"]["images"]["1"]["psnr"] > 0
    assert all("attn1" in name for name in load_adapter(tmp_path / "run/best.safetensors").modules)

    assert main(["train", "--path_config", str(path)]) == 0
    captured = capsys.readouterr()
    assert "Trained 3 of 3 steps" in captured.out
    assert "steps 1: PSNR" in captured.out
    assert "resuming after step 2" in captured.err
    assert "max_steps: 2 -> 3" in captured.err


def test_the_base_is_made_of_a_backbone(file: Callable[..., Path], tmp_path: Path) -> None:
    lbm = write_lbm(tmp_path / "lbm")
    made = tmp_path / "made.safetensors"
    path = file(
        backbone_signature=str(lbm.backbone),
        base_model_path=str(made),
        config_path=str(lbm.base.parent / "config.yaml"),
        lora_target_modules=["attn1"],
        max_steps=1,
    )
    assert lbm_lora.train(path).step == 1
    assert made.exists()


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_goes_on_bit_for_bit(file: Callable[..., Path], tmp_path: Path) -> None:
    path = file(lora_target_modules=["attn1", "conv_in"], lora_dropout=0.1, ema_decay=0.5)
    done = run([sys.executable, str(Path(__file__).with_name("killed_runs.py")), str(path), str(tmp_path / "runs")])
    lines = done.stdout.splitlines()
    assert len(lines) == 9
    assert all(line.endswith(", same") for line in lines), done.stdout
    assert {line.split(": ")[1][0] for line in lines} >= {"0", "1"}


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_0(file: Callable[..., Path], tmp_path: Path) -> None:
    """It reaches the processes that read data as well, as it does when a cluster ends a job."""
    path = file(max_steps=100_000, max_epochs=100_000, save_interval=100_000, num_workers=1)
    words = [*LBM_LORA, "train", "--path_config", str(path)]
    with subprocess.Popen(
        words, env=ENVIRONMENT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "loss" in line:
                break
        os.killpg(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert re.match(r"Stopped by SIGTERM after step \d+ of 100,000, and saved\. Run the same command to resume", out)
    assert (tmp_path / "run/last.safetensors").exists()
    assert (tmp_path / "run/resume.pt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_are_one_with_the_same_batch(file: Callable[..., Path], tmp_path: Path, strategy: str) -> None:
    pairs = {"validation_folder": str(bundled.PAIRS), "validation_samples": 3, "num_steps": [1]}
    path = file(train_norms=True, ema_decay=0.5, accumulate=2, max_steps=3, save_interval=1, **pairs)
    words = [*LBM_LORA, "train", "--path_config", str(path)]
    run([*words, "--batch_size", "4", "--save_ckpt_path", str(tmp_path / "one")])
    two = [*words, "--devices", "2", "--strategy", strategy, "--save_ckpt_path", str(tmp_path / "two")]
    done = run([*two, "--max_steps", "2"])
    assert done.stdout.count("Trained 2 of 2 steps") == 1
    run(two)  # and goes on, sharded
    for name in ("last", "step-000002"):
        assert distance(tmp_path / f"one/{name}.safetensors", tmp_path / f"two/{name}.safetensors") < 1e-5
    assert (tmp_path / "two/pictures/step-000002.png").read_bytes()
    assert "validation on 3 pairs" in done.stderr
