"""What a run is before its first step: its length, its parts, and what it may go on from."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import ConfigError
from lbm_lora.launch import open_fabric
from lbm_lora.model.config import LBMConfig
from lbm_lora.ownership import TRAINING_STATE
from lbm_lora.progress import Silent
from lbm_lora.trainable.state import TrainState, copied, save_state
from lbm_lora.training.data import BucketBatches, open_data
from lbm_lora.training.run.prepare import PreparedRun, prepare, total_steps
from lbm_lora.training.run.run_folder import RunFolder
from lbm_lora.training.run.trainee import TRAINING_KEY
from lbm_lora.training.settings.train_config import TrainConfig

Config = Callable[..., TrainConfig]


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)


def prepared(config: TrainConfig, notes: Notes | None = None) -> PreparedRun:
    assert config.base_model_path is not None
    with open_checkpoint(config.base_model_path) as base:
        return prepare(config, base, open_fabric(config), notes or Notes())


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


def test_a_run_goes_on_from_its_state_only_with_the_same_identity(config: Config) -> None:
    chosen = config()
    run = prepared(chosen)
    values = copied(run.trainee.parameters)
    state = TrainState(
        step=2, epoch=0, batch=2, values=values, optimizer={}, average=None, origins={}, best=None, best_step=None,
        validated=-1, identity=run.identity, config=chosen.model_dump(mode="json"),
    )  # fmt: skip
    save_state(state, RunFolder(chosen.save_ckpt_path).state, mark=TRAINING_STATE)
    notes = Notes()
    resumed = prepared(config(learning_rate=1e-3), notes)
    assert resumed.done == 2
    assert notes.lines == [
        "resuming after step 2.",
        "changed since its last save: learning_rate: 0.01 -> 0.001.",
    ]
    with pytest.raises(ConfigError, match=r"state of another run: lora_rank was 2 and is now 3"):
        prepared(config(lora_rank=3))
    save_state(replace(state, identity={}), RunFolder(chosen.save_ckpt_path).state, mark=TRAINING_STATE)
    with pytest.raises(ConfigError, match=r"state of another run: mode was None"):
        prepared(chosen)


def a_state(run: PreparedRun, config: TrainConfig) -> TrainState:
    return TrainState(
        step=2, epoch=0, batch=2, values=copied(run.trainee.parameters), optimizer={}, average=None, origins={},
        best=3.0, best_step=2, validated=2, saved_steps=(2,), identity=run.identity,
        config=config.model_dump(mode="json"),
    )  # fmt: skip


def test_a_state_of_another_folder_leaves_the_run_in_this_one(config: Config, tmp_path: Path) -> None:
    first, other = tmp_path / "a" / "resume.pt", RunFolder(config().save_ckpt_path)
    first.parent.mkdir()
    save_state(a_state(prepared(config()), config()), first, mark=TRAINING_STATE)
    state = prepared(config(resume=first)).state
    assert state is not None
    assert (state.step, state.saved_steps, state.best) == (2, (), None), "its results are in another folder"
    other.path.mkdir()
    save_file({"a": torch.ones(1)}, other.best, {TRAINING_KEY: '{"step": 3}'})
    other.config.write_text(config(resume=first, save_interval=2).to_yaml())
    again = prepared(config(resume=first, save_interval=2)).state
    assert again is not None
    assert again.step == 2, "it was killed after its first validation"
    own = a_state(prepared(config(resume=first, save_interval=2)), config())
    save_state(replace(own, step=3), other.state, mark=TRAINING_STATE)
    again = prepared(config(resume=first)).state
    assert again is not None
    assert again.step == 3, "the same command goes on"
    save_state(replace(own, identity={"seed": 9}), other.state, mark=TRAINING_STATE)
    with pytest.raises(ConfigError, match=r"holds a run with a state of its own, and resume names .*a/resume\.pt"):
        prepared(config(resume=first))
    save_state(own, other.state, mark=TRAINING_STATE)
    kept = prepared(config(resume=other.state)).state
    assert kept is not None
    assert kept.saved_steps == (2,)
    other.state.rename(other.best)
    with pytest.raises(ConfigError, match=r"holds best\.safetensors of a run that has lost its resume\.pt"):
        prepared(config(resume=first))


def test_scores_that_are_measured_otherwise_are_not_compared(config: Config) -> None:
    chosen = config()
    save_state(a_state(prepared(chosen), chosen), RunFolder(chosen.save_ckpt_path).state, mark=TRAINING_STATE)
    state = prepared(config(learning_rate=1e-3)).state
    assert state is not None
    assert (state.best, state.best_step, state.validated) == (3.0, 2, 2)
    notes = Notes()
    state = prepared(config(num_steps=(1,)), notes).state
    assert state is not None
    assert (state.best, state.best_step, state.validated) == (None, None, -1)
    assert "the best score so far was measured otherwise" in notes.lines[-1]


def test_pictures_of_another_run_stay(config: Config) -> None:
    folder = RunFolder(config().save_ckpt_path)
    folder.grid(2).parent.mkdir(parents=True)
    folder.grid(2).touch()
    folder.config.write_text(config(learning_rate=0.5).to_yaml())
    with pytest.raises(ConfigError, match=r"holds step-000002\.png of another run.*: learning_rate was 0\.5 and is"):
        prepared(config())
    folder.config.write_text(config().to_yaml())
    assert prepared(config()).done == 0  # it was killed before its first save, and starts again


def test_results_of_another_run_without_its_state(config: Config) -> None:
    folder = RunFolder(config().save_ckpt_path)
    folder.path.mkdir(parents=True)
    folder.best.write_text("made by lbm-lora")
    with pytest.raises(ConfigError, match=r"holds best\.safetensors of another run, .*its config\.yaml cannot be read"):
        prepared(config())
    folder.config.write_text(config(learning_rate=0.5, device="cpu").to_yaml())
    with pytest.raises(ConfigError, match=r"another run, .*: learning_rate was 0\.5 and is now 0\.01\. Choose"):
        prepared(config())
    folder.config.write_text(config(num_workers=3, save_interval=2).to_yaml())
    save_file({"a": torch.ones(1)}, folder.best, {TRAINING_KEY: '{"step": 2}'})
    assert prepared(config(save_interval=2)).done == 0  # it was killed before its first save, and starts again
    for facts in ('{"step": 3}', '{"step": 1e99}', "[]"):
        save_file({"a": torch.ones(1)}, folder.best, {TRAINING_KEY: facts})
        with pytest.raises(ConfigError, match=r"best\.safetensors of a run that has lost its resume\.pt"):
            prepared(config(save_interval=2))


def test_latents_are_cached_by_the_vae(config: Config, base_bf16: Path) -> None:
    cache = {"cache_latents": True, "cache_dir": "cache"}
    first = prepared(config(**cache)).latents
    other = prepared(config(base_model_path=base_bf16, base_dtype="bf16", precision="bf16-mixed", **cache)).latents
    assert first is not None
    assert other is not None
    pair = prepared(config()).train.index.read(0)
    assert first.path(pair, (64, 64)) != other.path(pair, (64, 64))


def test_latents_are_cached_by_the_numbers_of_the_vae(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = config(cache_latents=True, cache_dir="cache")
    first, paths = prepared(chosen), set[Path]()
    pair, numbers = first.train.index.read(0), first.loss.model.config.vae_config
    for factor in (0.13025, 3.0):
        monkeypatch.setattr(LBMConfig, "vae_config", {**numbers, "scaling_factor": factor})
        latents = prepared(chosen).latents
        assert latents is not None
        paths.add(latents.path(pair, (64, 64)))
    assert len(paths) == 2
