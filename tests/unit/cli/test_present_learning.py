"""What a user reads of a training's result."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from lbm_lora.cli.present import present
from lbm_lora.workflows.train import TrainResult


@pytest.fixture
def result(tmp_path: Path) -> TrainResult:
    last = tmp_path / "last.safetensors"
    last.write_bytes(b"x" * 2000)
    return TrainResult(
        folder=tmp_path,
        last=last,
        best=None,
        step=20,
        total=20,
        learning=1234,
        loss=0.25,
        scores=None,
        best_step=None,
        stopped_by="",
        seconds=3.0,
        rank=0,
    )


def test_a_trained_run_says_its_loss_and_its_file(result: TrainResult) -> None:
    text = present("train", result)
    assert text.startswith("Trained 20 of 20 steps, 1,234 parameters, last loss 0.25000, 3 s.")
    assert "last.safetensors (2.0 kB)" in text


def test_a_run_that_was_at_its_end_has_no_loss_to_say(result: TrainResult) -> None:
    assert present("train", replace(result, loss=math.nan)).startswith("Trained 20 of 20 steps, 1,234 parameters, 3 s.")
