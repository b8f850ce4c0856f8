"""What a run goes on from, and what it must not mix with."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from prepared_runs import Notes, prepared
from safetensors.torch import save_file

from lbm_lora.errors import ConfigError
from lbm_lora.ownership import TRAINING_STATE
from lbm_lora.trainable.state import TrainState, copied, save_state
from lbm_lora.training.run.prepare import PreparedRun
from lbm_lora.training.run.resume import was_cut_off
from lbm_lora.training.run.run_folder import RunFolder
from lbm_lora.training.run.trainee import TRAINING_KEY
from lbm_lora.training.settings.train_config import TrainConfig

Config = Callable[..., TrainConfig]


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
    own = a_state(prepared(config(resume=first)), config())
    same = replace(own, step=3, config=config(resume=first).model_dump(mode="json"))
    save_state(same, other.state, mark=TRAINING_STATE)
    again = prepared(config(resume=first)).state
    assert again is not None
    assert again.step == 3, "the same command goes on"
    save_state(replace(own, step=3), other.state, mark=TRAINING_STATE)  # another run with equal settings
    with pytest.raises(ConfigError, match=r"holds a run with a state of its own, and resume names .*a/resume\.pt"):
        prepared(config(resume=first))
    save_state(own, other.state, mark=TRAINING_STATE)
    kept = prepared(config(resume=other.state)).state
    assert kept is not None
    assert kept.saved_steps == (2,)
    other.state.rename(other.best)
    with pytest.raises(ConfigError, match=r"holds best\.safetensors of another run, without a state"):
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


def test_a_state_that_is_older_than_the_results_is_refused(config: Config) -> None:
    """As one that a backup has put back."""
    chosen = config()
    folder = RunFolder(chosen.save_ckpt_path)
    save_state(a_state(prepared(chosen), chosen), folder.state, mark=TRAINING_STATE)
    for path, step in ((folder.step_file(2), 2), (folder.last, 2), (folder.best, 9)):
        save_file({"a": torch.ones(1)}, path, {TRAINING_KEY: f'{{"step": {step}}}'})
    assert prepared(chosen).done == 2, "a validation may have come after the last save"
    save_file({"a": torch.ones(1)}, folder.step_file(4), {TRAINING_KEY: '{"step": 4}'})
    with pytest.raises(ConfigError, match=r"resume\.pt is of step 2, but .* later steps.*: step-000004\.safetensors\."):
        prepared(chosen)


@pytest.mark.parametrize(("last", "cut"), [(1, True), (2, False), (3, False), (None, True), ("theirs", False)])
def test_a_save_that_was_cut_off_is_known_by_its_last_file(config: Config, last: int | str | None, cut: bool) -> None:
    folder, state = RunFolder(config().save_ckpt_path), a_state(prepared(config()), config())
    folder.path.mkdir()
    if last is not None:
        facts = {} if last == "theirs" else {TRAINING_KEY: f'{{"step": {last}}}'}
        save_file({"a": torch.ones(1)}, folder.last, facts)
    assert was_cut_off(state, folder) == cut
    assert not was_cut_off(None, folder)
    assert not was_cut_off(replace(state, saved_steps=()), folder)


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
    folder.config.write_text(config(num_workers=3).to_yaml())
    with pytest.raises(ConfigError, match=r"best\.safetensors of a run that has lost its resume\.pt"):
        prepared(config())
