"""What a user reads of a training's result, and of its data."""

import math
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lbm_lora.bundled import PAIRS
from lbm_lora.cli.main import parse
from lbm_lora.cli.present import present
from lbm_lora.configs.data_pack import PackConfig
from lbm_lora.shards.samples import Skipped
from lbm_lora.training.data.check import Checked, SizeCount
from lbm_lora.training.validation import ImageScores, Scores
from lbm_lora.workflows import data_check, data_pack
from lbm_lora.workflows.data_check import CheckedSplit, CheckResult
from lbm_lora.workflows.data_pack import PackResult
from lbm_lora.workflows.train import TrainResult

File = Callable[[str, int], Path]


@pytest.fixture
def trained(folder: Path, file: File) -> TrainResult:
    return TrainResult(
        folder=folder,
        last=file("run/last.safetensors", 2_000),
        best=None,
        step=20,
        total=20,
        learning=1234,
        loss=0.25,
        scores=None,
        best_step=None,
        stopped_by="",
        seconds=3.0,
        process=0,
    )


def test_a_training(trained: TrainResult) -> None:
    assert present("train", trained) == (
        "Trained 20 of 20 steps, 1,234 parameters, last loss 0.25000, 3 s.\n\nwrote run/last.safetensors (2.0 kB)"
    )


def test_a_training_with_a_validation(trained: TrainResult, file: File) -> None:
    images = {1: ImageScores(psnr=21.5, ssim=0.75, lpips=0.125), 2: ImageScores(psnr=22.0, ssim=0.8, lpips=None)}
    scores = Scores(samples=12, losses={250.0: 0.5, 1000.0: 0.25}, loss=0.375, images=images)
    result = replace(trained, scores=scores, best=file("run/best.safetensors", 3_000), best_step=15)
    assert present("train", result) == (
        "Trained 20 of 20 steps, 1,234 parameters, last loss 0.25000, 3 s.\n\n"
        "Validation of 12 pairs: loss 0.37500 (0.50000 at 250, 0.25000 at 1000)\n"
        "  steps 1: PSNR 21.50 dB, SSIM 0.7500, LPIPS 0.1250\n"
        "  steps 2: PSNR 22.00 dB, SSIM 0.8000\n\n"
        "wrote run/last.safetensors (2.0 kB)\n"
        "wrote run/best.safetensors (3.0 kB)\n\n"
        "run/best.safetensors is of step 15."
    )


def test_a_run_that_was_at_its_end_has_no_loss_to_say(trained: TrainResult) -> None:
    assert present("train", replace(trained, loss=math.nan)) == (
        "All 20 steps had been trained before: run/last.safetensors."
    )
    assert present("train", replace(trained, loss=math.nan, step=50)) == (
        "50 steps had been trained before, more than the 20 asked for: run/last.safetensors."
    )


def test_a_stopped_run(trained: TrainResult) -> None:
    stopped = replace(trained, step=7, stopped_by="SIGTERM", last=None)
    assert present("train", stopped) == (
        "Stopped by SIGTERM after step 7 of 20, and saved. Run the same command to resume."
    )


def test_packed_shards() -> None:
    result = PackResult(
        shards=(Path("p-000000.tar"),),
        pattern="p-000000.tar",
        pairs=36,
        masks=12,
        nbytes=1_000_000,
        skipped=(Skipped("cup", "no target"),),
        source_key="source.jpg",
        target_key="target.jpg",
        mask_key="mask.png",
    )
    assert present("data_pack", result) == (
        "Packed 36 pairs, 12 with a mask, into 1 shard.\n  left out: cup: no target\n\n"
        'In a training file:\n  train_shards: ["p-000000.tar"]\n  mask_key: mask.png\n\n'
        'Next: lbm-lora data check "p-000000.tar" --mask_key mask.png'
    )


@pytest.mark.parametrize(("source", "masked"), [("source", True), ("day.v1", False)])
def test_the_printed_command_checks_what_was_packed(tmp_path: Path, source: str, masked: bool) -> None:
    for path in sorted(PAIRS.glob("lemon-*"))[:12]:
        if masked or ".mask." not in path.name:
            shutil.copy(path, tmp_path / path.name.replace(".source.", f".{source}."))
    config = PackConfig(folder=tmp_path, to=tmp_path / "my shards", shard_count=2, source_key=f"{source}.jpg")
    made = data_pack.run(config)
    words = shlex.split(present("data_pack", made).rpartition("Next: lbm-lora data check ")[2])
    check, _ = parse("data check", [*words, "--image_size", "64"])
    (split,) = data_check.run(check).splits
    assert (split.found.pairs, split.found.masks, split.found.skipped) == (4, 4 if masked else 0, ())


def test_a_checked_data_set() -> None:
    train = Checked(
        where="p-000000.tar",
        pairs=18,
        nbytes=1_500_000,
        skipped=(Skipped("a", "no target"), Skipped("b", "cannot be decoded")),
        sizes=(),
        buckets=(SizeCount(width=128, height=128, samples=12), SizeCount(width=160, height=96, samples=6)),
        steps=2,
        notes=("1 sample of 160x96 is left over.",),
        masks=9,
        mask_share=0.255,
    )
    validation = replace(train, where="held", pairs=1, skipped=(), masks=0, mask_share=None, steps=1, notes=())
    splits = CheckedSplit(split="train", found=train), CheckedSplit(split="validation", found=validation)
    assert present("data_check", CheckResult(splits=splits, failures=())) == (
        "train: p-000000.tar\n"
        "  18 pairs, 1.50 MB, 9 masks, 25.5% white on average\n"
        "  2 cannot be used (10.0%)\n"
        "    left out: a: no target\n"
        "    left out: b: cannot be decoded\n"
        "  sizes in training: 128x128: 12, 160x96: 6\n"
        "  2 steps in an epoch\n"
        "  1 sample of 160x96 is left over.\n\n"
        "validation: held\n"
        "  1 pair, 1.50 MB, 0 masks\n"
        "  0 cannot be used (0.0%)\n"
        "  sizes in training: 128x128: 12, 160x96: 6\n"
        "  1 step in an epoch"
    )
