"""What a run is before its first step: its length, its parts, and what it may go on from."""

from collections.abc import Callable
from pathlib import Path

import pytest
from prepared_runs import Notes, prepared

from lbm_lora.model.config import LBMConfig
from lbm_lora.training.checkpoint import TrainState
from lbm_lora.training.data.batches import BucketBatches
from lbm_lora.training.data.dataset import open_data
from lbm_lora.training.prepare import total_steps
from lbm_lora.training.settings import TrainConfig

Config = Callable[..., TrainConfig]


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ({"max_epochs": 4, "max_steps": None}, 12),
        ({"max_epochs": 4, "max_steps": 5}, 5),
        ({"max_epochs": 1, "max_steps": 5}, 3),
        ({"max_epochs": 4, "max_steps": None, "accumulate": 5}, 2),
    ],
)
def test_length_of_a_run(config: Config, values: dict[str, int | None], steps: int) -> None:
    chosen = config(batch_size=2, **values)
    batches = BucketBatches(open_data(chosen, "train", seed=0), chosen.batch_size, seed=0)
    assert total_steps(batches, chosen) == steps


@pytest.mark.parametrize(
    ("step", "epoch", "batch", "total"),
    [(0, 0, 0, 12), (4, 1, 1, 12), (3, 0, 3, 12), (12, 4, 0, 12), (3, 10**9, 0, 3), (3, 0, 10**9, 12), (8, 1, 1, 16)],
)
def test_a_run_that_resumes_ends_with_its_data(config: Config, step: int, epoch: int, batch: int, total: int) -> None:
    """Even if its batch size has changed, or its saved position is out of range."""
    chosen = config(batch_size=2, max_epochs=4, max_steps=None)
    batches = BucketBatches(open_data(chosen, "train", seed=0), chosen.batch_size, seed=0)
    state = TrainState(
        step=step,
        epoch=epoch,
        batch=batch,
        values={},
        optimizer={},
        average=None,
        origins={},
        best=None,
        best_step=None,
        validated=-1,
        identity={},
        config={},
    )
    assert total_steps(batches, chosen, state) == total


def test_a_new_run(config: Config) -> None:
    notes = Notes()
    run = prepared(config(precision="bf16-mixed", max_epochs=1, max_steps=5), notes)
    assert (run.total, run.done, run.state, run.latents, run.validator) == (3, 0, None, None, None)
    assert run.loss.mixed
    assert notes.lines == ["max_epochs 1 ends the run after 3 steps, before max_steps 5."]
    assert all(parameter.requires_grad for parameter in run.trainee.parameters.values())
    assert not run.folder.path.exists()


def test_latents_are_cached_by_the_numbers_of_the_vae(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = config(cache_latents=True, cache_dir="cache")
    first, paths = prepared(chosen), set[Path]()
    pair, numbers = first.train.index.record(0), first.loss.model.config.vae_config
    for factor in (0.13025, 3.0):
        monkeypatch.setattr(LBMConfig, "vae_config", {**numbers, "scaling_factor": factor})
        latents = prepared(chosen).latents
        assert latents is not None
        paths.add(latents.path(pair, (64, 64)))
    assert len(paths) == 2
