"""Short runs on a small random LBM that are stopped: they go on as if nothing had happened."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lbm_lora.configs.train import TrainRunConfig
from lbm_lora.errors import ConfigError, DataError, OutputError, QualityError
from lbm_lora.progress import SILENT
from lbm_lora.training.checkpoint import RunFolder, load_state
from lbm_lora.training.loop import TrainingLoop
from lbm_lora.training.settings import TrainConfig
from lbm_lora.training.validation import measure
from lbm_lora.workflows.train import run, trained
from nano import Recorder, same, train

pytestmark = pytest.mark.e2e

Config = Callable[..., TrainConfig]

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {
        "ema_decay": 0.9,
        "lora_dropout": 0.3,
        "accumulate": 2,
        "learning_rate_scheduler": "cosine",
        "warmup_steps": 2,
        "lora_plus_ratio": 4.0,
        "init_lora": "pissa_niter_2",
        "train_biases": True,
        "train_norms": True,
        "gradient_checkpointing": True,
        "flip": True,
        "mask_key": "mask.png",
        "optimizer": "NAdam",
    },
    "bf16": {
        "precision": "bf16-mixed",
        "base_dtype": "bf16",
        "optimizer": "SGD",
        "optimizer_kwargs": {"momentum": 0.9},
    },
}


@pytest.mark.parametrize(("options", "where"), [("plain", 1), ("everything", 4), ("bf16", 1)])
def test_a_stopped_run_goes_on_bit_for_bit(
    config: Config, pairs: Path, tmp_path: Path, options: str, where: int
) -> None:
    values = {"max_steps": 5, "save_interval": 3, **OPTIONS[options]}
    unbroken = train(config(save_ckpt_path=tmp_path / "unbroken", **values))
    chosen = config(save_ckpt_path=tmp_path / "broken", **values)
    broken = train(chosen, Recorder(at=where, action=lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert (broken.standing.step, broken.standing.stopped_by) == (where, "SIGTERM")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    listener = Recorder()
    resumed = train(chosen, listener)
    assert (resumed.standing.step, resumed.standing.stopped_by) == (5, "")
    assert f"resuming after step {where}." in listener.notes
    assert same(unbroken.folder.last, resumed.folder.last)
    one, other = load_state(unbroken.folder.state), load_state(resumed.folder.state)
    assert (one.step, one.epoch, one.batch, one.best) == (other.step, other.epoch, other.batch, other.best)
    assert all(torch.equal(one.values[name], other.values[name]) for name in one.values)


def test_a_stop_in_a_validation_saves_and_does_the_validation_later(
    config: Config, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_in_the_second(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:  # of the second validation, of 3 pairs
            os.kill(os.getpid(), signal.SIGTERM)
        return measure(*arguments)

    calls: list[int] = []
    values = {"validation_folder": pairs, "max_steps": 3}
    unbroken = train(config(save_ckpt_path=tmp_path / "unbroken", **values))
    chosen = config(save_ckpt_path=tmp_path / "broken", **values)
    monkeypatch.setattr("lbm_lora.training.validation.measure", stop_in_the_second)
    broken = train(chosen)
    assert (broken.standing.step, broken.standing.stopped_by) == (2, "SIGTERM")
    assert load_state(broken.folder.state).validated == 0
    monkeypatch.undo()
    listener = Recorder()
    resumed = train(chosen, listener)
    assert [note[:6] for note in listener.notes if "validation on" in note] == ["step 2", "step 3"]
    assert same(unbroken.folder.last, resumed.folder.last)
    assert same(unbroken.folder.best, resumed.folder.best)


def test_a_run_that_was_stopped_in_its_last_step_is_validated_later(
    config: Config, pairs: Path, tmp_path: Path
) -> None:
    values = {"max_steps": 2, "save_interval": 2, "validation_folder": pairs}
    unbroken = train(config(save_ckpt_path=tmp_path / "unbroken", **values))
    chosen = config(**values)
    folder = train(chosen, Recorder(at=2, action=lambda: os.kill(os.getpid(), signal.SIGTERM))).folder
    assert not folder.grid(2).exists()
    again = train(chosen)
    assert (again.standing.best, again.standing.best_step) == (unbroken.standing.best, unbroken.standing.best_step)
    assert same(folder.best, unbroken.folder.best)
    assert folder.grid(2).exists()
    listener = Recorder()
    train(chosen, listener)
    assert listener.notes[1:] == ["the run is already complete. To continue it, raise max_steps or max_epochs."]


def test_the_scores_of_a_validation_are_saved_also_where_no_save_follows_it(
    config: Config, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"save_interval": 2, "validation_folder": pairs}
    folder = train(config(max_steps=2, **values)).folder
    other = config(max_steps=4, best_metric="psnr", **values)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_accumulate", lambda *_: False)  # stopped at once
        train(other)
    state = load_state(folder.state)
    assert (state.step, state.validated, state.best_step) == (2, 2, 2)
    train(other)
    assert len([*folder.path.glob("best-of-*")]) == 1


@pytest.mark.parametrize("max_steps", [4, 6])
def test_a_save_that_was_cut_off_after_its_state_is_made_up_for(config: Config, tmp_path: Path, max_steps: int) -> None:
    values = {"save_interval": 2, "keep_last": 1}
    unbroken = train(config(save_ckpt_path=tmp_path / "unbroken", max_steps=max_steps, **values)).folder
    chosen = config(save_ckpt_path=tmp_path / "cut", max_steps=4, **values)
    old = tmp_path / "old.safetensors"  # of the save before, which the cut one would have removed

    def keep_the_save_of_step_2() -> None:
        shutil.copy(chosen.save_ckpt_path / "last.safetensors", old)

    folder = train(chosen, Recorder(at=3, action=keep_the_save_of_step_2)).folder
    folder.step_file(4).unlink()
    folder.last.unlink()
    shutil.copy(old, folder.step_file(2))
    shutil.copy(old, folder.last)
    train(config(save_ckpt_path=tmp_path / "cut", max_steps=max_steps, **values))
    assert folder.step_files().keys() == unbroken.step_files().keys()
    assert same(unbroken.last, folder.last)
    assert same(unbroken.step_file(max_steps), folder.step_file(max_steps))


def test_a_finished_run_without_its_state_is_not_begun_again(config: Config) -> None:
    folder = train(config(max_steps=2)).folder
    before = folder.last.read_bytes()
    folder.state.unlink()
    with pytest.raises(OutputError, match=r"last\.safetensors exists, and a training run has saved it\. .* overwrite"):
        trained(config(max_steps=2, seed=1), SILENT)
    assert folder.last.read_bytes() == before
    trained(config(max_steps=2, seed=1), SILENT, overwrite=True)
    assert folder.last.read_bytes() != before


def test_a_run_that_fails_before_its_first_result_leaves_the_configuration(
    config: Config, pairs: Path, tmp_path: Path
) -> None:
    folder = train(config(max_steps=2)).folder
    before = folder.config.read_text()
    bad = tmp_path / "bad"
    bad.mkdir()
    for path in pairs.iterdir():
        data = path.read_bytes()
        (bad / path.name).write_bytes(data[:60].ljust(len(data), b"\0"))  # of the same size
    with pytest.raises(DataError):
        train(config(max_steps=4, learning_rate=3e-3, train_folder=bad))
    assert folder.config.read_text() == before
    train(config(max_steps=3, learning_rate=1e-3))
    assert "learning_rate: 0.001" in folder.config.read_text()


def test_a_run_that_is_killed_after_its_first_validation_goes_on(config: Config, pairs: Path, tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("the machine went away")

    values = {"max_steps": 4, "save_interval": 4, "validation_interval": 2, "validation_folder": pairs}
    unbroken = train(config(save_ckpt_path=tmp_path / "unbroken", **values)).folder
    chosen = config(save_ckpt_path=tmp_path / "broken", **values)
    with pytest.raises(RuntimeError, match="went away"):
        train(chosen, Recorder(at=1, action=fail))
    folder = RunFolder(chosen.save_ckpt_path)
    assert [*folder.path.glob("*.safetensors")] == [folder.best]
    assert folder.state.exists()
    train(chosen)
    assert same(unbroken.last, folder.last)
    assert same(unbroken.best, folder.best)


def test_a_copied_folder_does_not_train_over_the_first_one(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = train(config(max_steps=2)).folder
    before = folder.last.read_bytes()
    shutil.copytree(folder.path, tmp_path / "copy")
    copied = tmp_path / "copy" / "config.yaml"
    with pytest.raises(ConfigError, match=r"copy/config\.yaml is in the folder of a run, but its save_ckpt_path is "):
        run(TrainRunConfig(path_config=copied, overrides=(("max_steps", "4"),)))
    assert folder.last.read_bytes() == before
    again = (("max_steps", "4"), ("save_ckpt_path", str(tmp_path / "copy")))
    assert run(TrainRunConfig(path_config=copied, overrides=again)).last == tmp_path / "copy" / "last.safetensors"
    assert folder.last.read_bytes() == before


def test_a_finished_run_says_so_and_can_be_made_longer(config: Config, tmp_path: Path) -> None:
    train(config(max_steps=2))
    listener = Recorder()
    assert train(config(max_steps=2), listener).standing.step == 2
    assert any("already complete" in note for note in listener.notes)
    longer = Recorder()
    assert train(config(max_steps=3, learning_rate=1e-3), longer).standing.step == 3
    assert any(
        "changed since its last save: learning_rate: 0.01 -> 0.001, max_steps: 2 -> 3." in n for n in longer.notes
    )


def test_another_run_does_not_go_on(config: Config) -> None:
    train(config(max_steps=2))
    changes: list[tuple[dict[str, Any], str]] = [
        ({"lora_rank": 3}, r"lora_rank was 2 and is now 3"),
        ({"seed": 1}, r"seed was 0 and is now 1"),
        ({"batch_size": 3}, r"samples of a forward pass over all processes was 2 and is now 3"),
    ]
    for change, message in changes:
        with pytest.raises(ConfigError, match=message):
            train(config(max_steps=3, **change))
    with pytest.raises(OutputError, match=r"last\.safetensors exists, and a training run has saved it"):
        trained(config(max_steps=3, resume="never"), SILENT)


def test_the_training_file_of_a_run_stays_as_the_user_has_left_it(config: Config, tmp_path: Path) -> None:
    chosen = config(save_ckpt_path=tmp_path / "run", max_steps=1)
    train(chosen)
    file = tmp_path / "run" / "config.yaml"
    file.write_text(f"# longer\n{file.read_text().replace('max_steps: 1', 'max_steps: 2')}")
    edited = file.read_text()
    assert run(TrainRunConfig(path_config=file)).step == 2
    assert file.read_text() == edited
    file.write_text("".join(edited.splitlines(keepends=True)[2:]).replace("max_steps: 2", "max_steps: 3"))
    edited = file.read_text()
    assert run(TrainRunConfig(path_config=file)).step == 3, "also without the line that marks it as ours"
    assert file.read_text() == edited


def test_a_part_that_saves_nothing_leaves_the_configuration_of_the_one_before(config: Config) -> None:
    folder = train(config(max_steps=1)).folder
    before = {path: path.read_bytes() for path in folder.path.glob("*.*")}
    with pytest.raises(QualityError, match="training has diverged"):
        train(config(max_steps=6, save_interval=6, learning_rate=1e30, log_interval=1))
    assert {path: path.read_bytes() for path in folder.path.glob("*.*")} == before
    train(config(max_steps=2, learning_rate=1e-3))
    assert "learning_rate: 0.001" in folder.config.read_text()
