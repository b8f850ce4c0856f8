"""What a run goes on from, and what it must not mix with."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from prepared_runs import Notes, prepared
from safetensors.torch import save_file

from lbm_lora.adapter.metadata import STEP_KEY
from lbm_lora.errors import ConfigError
from lbm_lora.ownership import TRAINING_STATE
from lbm_lora.regular_file import file_digest
from lbm_lora.trainable.state import TrainState, copied, save_state
from lbm_lora.training.run import resume as module
from lbm_lora.training.run.prepare import PreparedRun
from lbm_lora.training.run.resume import best_result_of, results_of, was_cut_off
from lbm_lora.training.run.run_folder import RunFolder
from lbm_lora.training.run.trainee import TRAINING_KEY, training_facts
from lbm_lora.training.settings.train_config import TrainConfig

Config = Callable[..., TrainConfig]


def a_state(run: PreparedRun, config: TrainConfig) -> TrainState:
    return TrainState(
        step=2, epoch=0, batch=2, values=copied(run.trainee.parameters), optimizer={}, average=None, origins={},
        best=3.0, best_step=2, validated=2, saved_steps=(2,), identity=run.identity, part=run.part,
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
    first.rename(tmp_path / "away.pt")
    again = prepared(config(resume=first)).state
    assert again is not None
    assert again.step == 3, "it has all that it needs"
    (tmp_path / "away.pt").rename(first)
    save_state(replace(own, step=9), first, mark=TRAINING_STATE)
    again = prepared(config(resume=first)).state
    assert again is not None
    assert again.step == 3, "the other run has gone on by itself"
    save_state(replace(own, step=3), other.state, mark=TRAINING_STATE)  # another run with equal settings
    with pytest.raises(ConfigError, match=r"holds a run with a state of its own, and resume names .*a/resume\.pt"):
        prepared(config(resume=first))
    save_state(own, other.state, mark=TRAINING_STATE)
    kept = prepared(config(resume=other.state)).state
    assert kept is not None
    assert kept.saved_steps == (2,)
    other.state.rename(other.best)
    with pytest.raises(ConfigError, match=r"holds best\.safetensors of a run, but no resume\.pt"):
        prepared(config(resume=first))


def test_a_part_of_a_run_depends_on_all_that_went_before(config: Config, tmp_path: Path) -> None:
    chosen, other = config(), config(learning_rate=0.5)
    first, folder = prepared(chosen), RunFolder(chosen.save_ckpt_path)
    assert prepared(chosen).part == first.part != prepared(other).part
    save_state(a_state(first, chosen), folder.state, mark=TRAINING_STATE)
    same, changed = prepared(chosen), prepared(other)
    assert (same.part, same.earlier_parts) == (first.part, {})
    assert changed.part not in (first.part, prepared(config(learning_rate=0.5, save_ckpt_path=tmp_path / "new")).part)
    assert changed.earlier_parts == {first.part: 2}
    save_state(replace(a_state(changed, other), earlier_parts={first.part: 2}), folder.state, mark=TRAINING_STATE)
    again = prepared(chosen)
    assert again.part not in (first.part, changed.part)
    assert again.earlier_parts == {first.part: 2, changed.part: 2}
    fork = prepared(config(resume=folder.state, save_ckpt_path=tmp_path / "fork"))
    assert fork.part not in (*again.earlier_parts, again.part)


def test_scores_that_are_measured_otherwise_are_not_compared(config: Config) -> None:
    chosen = config()
    save_state(a_state(prepared(chosen), chosen), RunFolder(chosen.save_ckpt_path).state, mark=TRAINING_STATE)
    state = prepared(config(learning_rate=1e-3)).state
    assert state is not None
    assert (state.best, state.best_step, state.validated) == (3.0, 2, 2)
    notes = Notes()
    state = prepared(config(num_steps=(1,)), notes).state
    assert state is not None
    assert (state.best, state.best_step, state.validated) == (None, 2, -1)
    assert "the best score so far was measured otherwise" in notes.lines[-1]


def test_scores_on_other_pairs_are_not_compared(config: Config, pairs: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pairs, tmp_path / "validation"))
    chosen = config(validation_folder=folder)
    run = prepared(chosen)
    state = a_state(run, chosen)
    for measured in (run.measured, None):  # that of earlier versions is not known
        save_state(replace(state, measured=measured), RunFolder(chosen.save_ckpt_path).state, mark=TRAINING_STATE)
        again = prepared(chosen).state
        assert again is not None
        assert again.best == 3.0
    save_state(replace(state, measured=run.measured), RunFolder(chosen.save_ckpt_path).state, mark=TRAINING_STATE)
    for path in folder.glob("0.*"):
        path.unlink()
    again = prepared(chosen).state
    assert again is not None
    assert (again.best, again.best_step, again.validated) == (None, 2, -1)


def test_a_state_that_is_older_than_the_results_is_refused(config: Config, pairs: Path) -> None:
    """As one that a backup has put back."""
    chosen = config(validation_folder=pairs)
    folder = RunFolder(chosen.save_ckpt_path)
    state = a_state(prepared(chosen), chosen)
    save_state(state, folder.state, mark=TRAINING_STATE)
    for path in (folder.step_file(2), folder.last, folder.best):
        save_of_step(2, path, chosen)
    folder.grid(2).parent.mkdir()
    folder.grid(2).touch()
    assert prepared(chosen).done == 2
    save_of_step(4, folder.step_file(4), chosen)
    save_of_step(4, folder.best, chosen)
    folder.grid(3).touch()
    with pytest.raises(ConfigError, match=r"resume\.pt is of step 2, but .* later steps.*: step-000004\.safetensors, "):
        prepared(chosen)
    folder.step_file(4).unlink()
    with pytest.raises(ConfigError, match=r"later steps.*: step-000003\.png, best\.safetensors\."):
        prepared(chosen)


@pytest.mark.parametrize("name", ["last", "best", "step-000002", "step-000003"])
def test_a_lora_of_somebody_else_stays(config: Config, pairs: Path, name: str) -> None:
    chosen = config(validation_folder=pairs)
    folder = RunFolder(chosen.save_ckpt_path)
    save_state(a_state(prepared(chosen), chosen), folder.state, mark=TRAINING_STATE)
    save_file({"a": torch.ones(1)}, folder.path / f"{name}.safetensors")
    with pytest.raises(ConfigError, match=rf"{name}\.safetensors.*ove (it|them) away\."):
        prepared(chosen)


def test_the_last_file_is_that_of_the_state(config: Config) -> None:
    """A state of another run may have been put into the folder, or a file of another one."""
    chosen, folder = config(), RunFolder(config().save_ckpt_path)
    state = a_state(prepared(chosen), chosen)
    folder.path.mkdir()
    save_of_step(1, folder.last, chosen)
    before = replace(state, results={1: file_digest(folder.last)})
    save_state(before, folder.state, mark=TRAINING_STATE)
    assert prepared(chosen).done == 2, "the save of step 2 was cut off"
    for step in (1, 2):
        save_of_step(step, folder.last, config(learning_rate=0.5))
        with pytest.raises(
            ConfigError, match=r"last\.safetensors is not a result of the run whose state is .*resume\.pt"
        ):
            prepared(chosen)


def test_the_best_file_is_that_of_the_state(config: Config, pairs: Path) -> None:
    """One of another training may have been put there."""
    chosen, folder = config(validation_folder=pairs), RunFolder(config().save_ckpt_path)
    state = a_state(prepared(chosen), chosen)
    folder.path.mkdir()
    save_of_step(1, folder.best, chosen)
    save_of_step(2, folder.last, chosen)
    save_state(replace(state, best_result=file_digest(folder.best)), folder.state, mark=TRAINING_STATE)
    assert prepared(chosen).done == 2
    save_of_step(1, folder.best, config(learning_rate=0.5))
    with pytest.raises(ConfigError, match=r"best\.safetensors is not a result of the run whose state is .*resume\.pt"):
        prepared(chosen)


def test_a_best_file_that_was_moved_out_may_come_back(config: Config, pairs: Path) -> None:
    chosen, folder = config(validation_folder=pairs), RunFolder(config().save_ckpt_path)
    state = replace(a_state(prepared(chosen), chosen), best_result="0123")
    assert best_result_of(state, chosen, folder) == "0123"
    folder.path.mkdir()
    save_of_step(2, folder.best, chosen)
    assert best_result_of(state, chosen, folder) == file_digest(folder.best)


def test_a_best_file_that_the_user_has_chosen_stays(config: Config, pairs: Path) -> None:
    """A run without a validation does not take it for its own; one with a validation refuses it."""
    chosen, folder = config(), RunFolder(config().save_ckpt_path)
    state = a_state(prepared(chosen), chosen)
    folder.path.mkdir()
    save_state(state, folder.state, mark=TRAINING_STATE)
    for step in (2, 1):
        save_of_step(step, folder.best, chosen)
        assert prepared(chosen).done == 2
        assert best_result_of(state, chosen, folder) is None
    with pytest.raises(ConfigError, match=r"best\.safetensors is not a result of the run whose state is"):
        prepared(config(validation_folder=pairs))


def test_a_last_file_stays_known_without_that_of_its_step(config: Config) -> None:
    """As where somebody has deleted the file of the step, and the run is killed later between two saves."""
    chosen, folder = config(), RunFolder(config().save_ckpt_path)
    state = replace(a_state(prepared(chosen), chosen), results={1: "0123"})
    assert results_of(state, folder) == {1: "0123"}
    folder.path.mkdir()
    save_of_step(2, folder.last, chosen)
    assert results_of(state, folder) == {1: "0123", 2: file_digest(folder.last)}
    save_of_step(2, folder.last, config(learning_rate=0.5))
    assert results_of(state, folder) == {1: "0123"}, "that of another run"


def test_a_run_on_other_data_is_another_one(config: Config) -> None:
    """Its files differ in nothing but the digest of what stays the same in a run."""
    chosen, folder = config(), RunFolder(config().save_ckpt_path)
    state = a_state(prepared(chosen), chosen)
    folder.path.mkdir()
    save_state(state, folder.state, mark=TRAINING_STATE)
    save_of_step(2, folder.last, chosen)
    assert prepared(chosen).done == 2
    save_of_step(2, folder.last, chosen, run="0123456789abcdef")
    with pytest.raises(ConfigError, match=r"last\.safetensors is not a result of the run whose state is"):
        prepared(chosen)


def test_a_step_file_of_another_run_stays_where_a_save_was_cut_off(config: Config) -> None:
    chosen, folder = config(), RunFolder(config().save_ckpt_path)
    state = replace(a_state(prepared(chosen), chosen), saved_steps=())
    folder.path.mkdir()
    save_state(state, folder.state, mark=TRAINING_STATE)
    save_of_step(2, folder.step_file(2), chosen)
    assert prepared(chosen).done == 2, "its own, killed before it became the last file"
    save_of_step(2, folder.step_file(2), config(learning_rate=0.5))
    with pytest.raises(ConfigError, match=r"step-000002\.safetensors is not a result of the run whose state is"):
        prepared(chosen)


def digest_of(config: TrainConfig) -> str:
    """Digest that a run would have in an empty folder."""
    elsewhere = config.model_copy(update={"save_ckpt_path": config.save_ckpt_path.with_name("elsewhere")})
    return prepared(elsewhere).part


def save_of_step(step: int, path: Path, config: TrainConfig, run: str = "") -> None:
    facts = json.dumps(training_facts(config, step), sort_keys=True, separators=(",", ":"))
    save_file({"a": torch.ones(1)}, path, {STEP_KEY: f"{step} {run or digest_of(config)}", TRAINING_KEY: facts})


@pytest.mark.parametrize(("last", "cut"), [(1, True), (2, False), (None, True), ("theirs", True)])
def test_a_save_that_was_cut_off_is_known_by_its_last_file(config: Config, last: int | str | None, cut: bool) -> None:
    folder, state = RunFolder(config().save_ckpt_path), a_state(prepared(config()), config())
    folder.path.mkdir()
    folder.state.touch()
    if isinstance(last, int):
        save_of_step(last, folder.last, config())
    elif last is not None:
        save_file({"a": torch.ones(1)}, folder.last)
    assert was_cut_off(state, folder) == cut
    assert was_cut_off(replace(state, saved_steps=()), folder), "killed while it validated"
    assert not was_cut_off(None, folder)
    assert not was_cut_off(replace(state, step=0, saved_steps=()), folder), "killed in its first validation"
    folder.state.unlink()
    assert not was_cut_off(state, folder), "it is the state of another folder"


def test_pictures_of_another_run_stay(config: Config) -> None:
    folder = RunFolder(config().save_ckpt_path)
    folder.grid(2).parent.mkdir(parents=True)
    folder.grid(2).touch()
    for resume in ("auto", "never"):
        with pytest.raises(ConfigError, match=r"step-000002\.png"):
            prepared(config(resume=resume))


def test_results_of_a_run_without_its_state(config: Config) -> None:
    folder = RunFolder(config().save_ckpt_path)
    folder.path.mkdir(parents=True)
    folder.best.write_text("made by lbm-lora")
    with pytest.raises(ConfigError, match=r"holds best\.safetensors of a run, but no resume\.pt: a new run would"):
        prepared(config())


def test_a_result_that_is_moved_away_while_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"ours")

    def moved(*_: object) -> bool:
        path.unlink()
        return True

    monkeypatch.setattr(module, "is_save_of", moved)
    assert module.own_digest(path, {}, 1, "") is None
