"""The state to go on from, the folder that it is in, and what a run must not mix with."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from file_limits import largest_file
from prepared_runs import Notes, prepared
from torch import nn

from lbm_lora.errors import ConfigError, OutputError
from lbm_lora.training.checkpoint import (
    TRAINING_STATE,
    RunFolder,
    TrainState,
    check_values,
    copied,
    load_state,
    optimizer_state,
    restore,
    save_state,
)
from lbm_lora.training.prepare import PreparedRun
from lbm_lora.training.settings import TrainConfig

Config = Callable[..., TrainConfig]


def a_state(**values: Any) -> TrainState:
    defaults: dict[str, Any] = {
        "step": 2, "epoch": 0, "batch": 2, "values": {}, "optimizer": {}, "average": None, "origins": {},
        "best": 3.0, "best_step": 2, "validated": 2, "identity": {}, "config": {},
    }  # fmt: skip
    return TrainState(**(defaults | values))


def state_of(run: PreparedRun, config: TrainConfig) -> TrainState:
    values = copied(run.trainee.parameters)
    return a_state(values=values, identity=run.identity, part=run.part, config=config.model_dump(mode="json"))


def save(state: TrainState, path: Path) -> Path:
    save_state(state, path, mark=TRAINING_STATE)
    return path


def learning(value: float) -> dict[str, nn.Parameter]:
    names = ("a.lora_down", "b.lora_up", "c.bias")
    return {name: nn.Parameter(torch.full((3, 2), float(value + index))) for index, name in enumerate(names)}


def step(parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
def test_a_state_comes_back_and_the_optimizer_goes_on_bit_for_bit(
    tmp_path: Path, kind: Callable[..., torch.optim.Optimizer]
) -> None:
    parameters, others = learning(0), learning(9)
    optimizer, other = kind(parameters.values(), lr=0.1), kind(others.values(), lr=0.1)
    for seed in range(3):
        step(parameters, optimizer, seed)
    kept, average = optimizer_state(optimizer, parameters), {name: torch.zeros(3, 2) for name in parameters}
    path = save(a_state(values=copied(parameters), optimizer=kept), tmp_path / "resume.pt")
    restore(load_state(path), others, other, average)
    assert all(torch.equal(average[name], parameters[name]) for name in average), "a new one starts from the values"
    for seed in (3, 4):
        step(parameters, optimizer, seed)
        step(others, other, seed)
    assert all(torch.equal(parameters[name], others[name]) for name in parameters)


def test_a_state_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    path = save(a_state(), tmp_path / "resume.pt")
    held = torch.load(path) | {"saved_steps": (2,), "results": {2: "0123"}, "best_result": None, "earlier_parts": {}}
    del held["part"], held["measured"]
    torch.save(held, path)
    assert load_state(path) == a_state()


def test_a_full_disk_leaves_no_half_state(tmp_path: Path) -> None:
    state = a_state(values={"a": torch.zeros(100_000)})
    with largest_file(1000), pytest.raises(OutputError, match="File too large"):
        save(state, tmp_path / "resume.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist. The folder "),
        (b"nonsense", r"is not the state of a training run \(\w+\)"),
        ({"format": 99}, "has another version's format"),
        ([1, 2], "is not the state of a training run: it holds no such entries"),
    ],
)
def test_files_that_are_no_states(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "resume.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ConfigError, match=message):
        load_state(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": -5}, "step: Input should be greater than or equal to 0"),
        ({"values": None}, "values: Input should be a valid dictionary"),
        ({"optimizer": {"a": None}}, "optimizer.a: "),
        ({"origins": {"a": 1}}, "origins.a: "),
    ],
)
def test_a_state_whose_entries_are_wrong_is_damaged(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = save(a_state(), tmp_path / "resume.pt")
    torch.save(torch.load(path) | changes, path)
    with pytest.raises(ConfigError) as caught:
        load_state(path)
    assert str(caught.value).startswith(f"{path} is damaged: {message}")


@pytest.mark.parametrize("value", [None, torch.zeros(1, 2), torch.full((3, 2), torch.nan)], ids=str)
@pytest.mark.parametrize("where", ["values", "average"])
def test_values_that_parameters_cannot_take_are_damage(where: str, value: torch.Tensor | None) -> None:
    parameters = learning(0)
    good = a_state(values=copied(parameters), average=copied(parameters))
    check_values(good, parameters, Path("resume.pt"))
    held = {**copied(parameters), "b.lora_up": value}
    damaged = replace(good, **{where: {name: one for name, one in held.items() if one is not None}})
    with pytest.raises(ConfigError, match=r"b\.lora_up must have finite values of shape \(3, 2\)"):
        check_values(damaged, parameters, Path("resume.pt"))


def write_step(_: object, step: int, path: Path) -> None:
    path.write_text(str(step))


def test_saves_are_numbered_and_the_newest_is_the_last(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (999_998, 999_999, 1_000_000):
        folder.save(step, write_step, {}, keep=2)
    (tmp_path / "step-12.safetensors").touch()  # no name of a save
    assert list(folder.step_files()) == [999_999, 1_000_000]
    assert folder.last.read_text() == "1000000"
    assert folder.last.samefile(folder.step_file(1_000_000)), "it takes no room of its own"
    folder.save(1_000_001, write_step, {}, keep=None)
    assert len(folder.step_files()) == 3
    folder.last.unlink()
    folder.save(1_000_001, lambda *_: pytest.fail("it is there"), {}, keep=None, again=True)
    assert folder.last.read_text() == "1000001"


def test_a_state_of_another_folder_continues_in_this_one(config: Config, tmp_path: Path) -> None:
    first, folder = tmp_path / "a" / "resume.pt", RunFolder(config().save_ckpt_path)
    held = state_of(prepared(config()), config())
    save(held, first)
    run = prepared(config(resume=str(first)))
    assert run.state is not None
    assert (run.state.step, run.state.best) == (2, None), "its best result is in another folder"
    save(replace(held, step=3, config=config(resume=str(first)).model_dump(mode="json")), folder.state)
    save(replace(held, step=9), first)
    assert prepared(config(resume=str(first))).done == 3, "the same command goes on; the other run goes its own way"
    save(replace(held, step=3), folder.state)  # another run with equal settings
    with pytest.raises(ConfigError, match=r"holds a run with a state of its own, and resume names .*a/resume\.pt"):
        prepared(config(resume=str(first)))
    assert prepared(config(resume=str(folder.state))).done == 3


def test_a_part_of_a_run_depends_on_all_that_went_before(config: Config, tmp_path: Path) -> None:
    chosen, other = config(), config(learning_rate=0.5)
    first, folder = prepared(chosen), RunFolder(chosen.save_ckpt_path)
    assert first.part != prepared(other).part
    save(state_of(first, chosen), folder.state)
    assert prepared(chosen).part == first.part
    changed = prepared(other)
    assert changed.part not in (first.part, prepared(config(learning_rate=0.5, save_ckpt_path=tmp_path / "new")).part)
    save(state_of(changed, other), folder.state)
    again = prepared(chosen)
    assert again.part not in (first.part, changed.part)
    fork = prepared(config(resume=str(folder.state), save_ckpt_path=tmp_path / "fork"))
    assert fork.part not in (first.part, changed.part, again.part)


def test_a_run_goes_on_only_with_the_same_identity(config: Config) -> None:
    chosen, notes = config(), Notes()
    held = state_of(prepared(chosen), chosen)
    save(held, RunFolder(chosen.save_ckpt_path).state)
    resumed = prepared(config(learning_rate=1e-3), notes)
    assert (resumed.done, resumed.left) == (2, resumed.total - 2)
    assert prepared(config(max_steps=1)).left == 0
    assert notes.lines == ["resuming after step 2.", "changed since its last save: learning_rate: 0.01 -> 0.001."]
    with pytest.raises(ConfigError, match=r"resume\.pt is the state of another run: lora_rank was 2 and is now 3\."):
        prepared(config(lora_rank=3))


def test_scores_that_are_measured_otherwise_are_not_compared(config: Config, pairs: Path) -> None:
    chosen, notes = config(validation_folder=pairs), Notes()
    run = prepared(chosen)
    for measured, best in ((run.measured, 3.0), (None, 3.0), ("other pairs", None)):  # None: of an earlier version
        save(replace(state_of(run, chosen), measured=measured), RunFolder(chosen.save_ckpt_path).state)
        state = prepared(chosen, notes).state
        assert state is not None
        assert (state.best, state.best_step, state.validated) == (best, 2, 2 if best else -1)
    assert "the best score so far was measured otherwise" in notes.lines[-1]
    save(replace(state_of(run, chosen), measured=run.measured), RunFolder(chosen.save_ckpt_path).state)
    state = prepared(config(validation_folder=pairs, num_steps=(1,))).state
    assert state is not None
    assert state.best is None
