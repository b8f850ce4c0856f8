"""The state to go on from: what is in it, that it comes back exactly, and what is refused."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from file_limits import largest_file
from torch import nn

from lbm_lora.errors import ConfigError, OutputError
from lbm_lora.ownership import TRAINING_STATE
from lbm_lora.trainable.state import (
    TrainState,
    changed_keys,
    check_identity,
    check_values,
    copied,
    load_state,
    optimizer_state,
    restore,
    save_state,
)


def learning(seed: int) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(3, 2, generator=generator)) for name in ("b.lora_up", "a.lora_down")}


def step(parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def state_of(parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, **values: Any) -> TrainState:
    defaults: dict[str, Any] = {
        "step": 3,
        "epoch": 1,
        "batch": 2,
        "values": copied(parameters),
        "optimizer": optimizer_state(optimizer, parameters),
        "average": None,
        "origins": {"a": (torch.ones(1, 2), torch.zeros(3, 1))},
        "best": -0.5,
        "best_step": 1,
        "validated": 2,
        "identity": {"seed": 0, "base": "abc"},
        "config": {"seed": 0, "max_steps": 5, "learning_rate": 1e-4},
    }
    return TrainState(**(defaults | values))


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "NAdam", "Rprop", "ASGD", "Adafactor"])
def test_a_restored_run_takes_the_same_steps(kind: str, tmp_path: Path) -> None:
    def make(parameters: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
        more = {"momentum": 0.9} if kind == "SGD" else {}
        # groups in another order than the names
        return getattr(torch.optim, kind)(list(parameters.values())[::-1], lr=0.1, **more)

    first = learning(0)
    optimizer = make(first)
    for seed in range(3):
        step(first, optimizer, seed)
    save_state(state_of(first, optimizer), tmp_path / "resume.pt", mark=TRAINING_STATE)
    step(first, optimizer, 9)

    second = learning(1)
    restored = make(second)
    restore(load_state(tmp_path / "resume.pt"), second, restored, None)
    step(second, restored, 9)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_state_is_the_same_after_the_file(tmp_path: Path) -> None:
    parameters = learning(0)
    made = state_of(parameters, torch.optim.SGD(parameters.values(), lr=0.1), average=copied(learning(2)))
    save_state(made, tmp_path / "resume.pt", mark=TRAINING_STATE)
    found = load_state(tmp_path / "resume.pt")
    assert (found.step, found.epoch, found.batch, found.best, found.identity) == (3, 1, 2, -0.5, made.identity)
    assert found.average is not None
    assert torch.equal(found.average["b.lora_up"], learning(2)["b.lora_up"])
    initial = found.initial_factors()
    assert [(name, factors.down.tolist()) for name, factors in initial.items()] == [("a", [[1.0, 1.0]])]


@pytest.mark.parametrize("nbytes", [0, 100, 2000])
def test_a_disk_that_refuses_the_file_is_named_as_the_reason(nbytes: int, tmp_path: Path) -> None:
    parameters = learning(1)
    state = state_of(parameters, torch.optim.AdamW(parameters.values()))
    with largest_file(nbytes), pytest.raises((OSError, OutputError), match="File too large"):
        save_state(state, tmp_path / "resume.pt", mark=TRAINING_STATE)
    assert list(tmp_path.iterdir()) == []


def test_an_average_that_is_new_starts_from_the_values() -> None:
    parameters = learning(0)
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    average = {name: torch.zeros(3, 2) for name in parameters}
    restore(state_of(learning(5), optimizer), parameters, optimizer, average)
    assert all(torch.equal(average[name], learning(5)[name]) for name in average)


def test_copies_do_not_follow_the_parameters() -> None:
    parameters = learning(0)
    held = copied(parameters)
    parameters["b.lora_up"].data += 1
    assert not torch.equal(held["b.lora_up"], parameters["b.lora_up"])


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


def test_another_run_is_refused_with_both_values() -> None:
    parameters = learning(0)
    state = state_of(parameters, torch.optim.SGD(parameters.values(), lr=0.1))
    check_identity(state, {"seed": 0, "base": "abc"}, Path("resume.pt"))
    with pytest.raises(ConfigError, match=r"resume\.pt is the state of another run: base was 'abc' and is now 'x'"):
        check_identity(state, {"seed": 0, "base": "x"}, Path("resume.pt"))
    assert changed_keys(state, {"max_steps": 5, "learning_rate": 1e-3}) == {
        "learning_rate": "learning_rate: 0.0001 -> 0.001"
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": "x"}, "step: Input should be a valid integer"),
        ({"step": -5}, "step: Input should be greater than or equal to 0"),
        ({"values": None}, "values: Input should be a valid dictionary"),
        ({"optimizer": {"a": None}}, "optimizer.a: "),
        ({"origins": {"a": 1}}, "origins.a: "),
        ({"saved_steps": ("a",)}, "saved_steps.0: "),
        ({"best": "x"}, "best: "),
        ({"bogus": 1}, "bogus: "),
        ({"identity": None}, "identity: "),
        ({"identity": {"seed": torch.ones(2)}}, "seed: "),
        ({"config": {"seed": torch.ones(2)}}, "seed: "),
        ({"optimizer": {"a": {"step": "x"}}}, "a holds no plain numbers"),
        ({"optimizer": {"a": {"step": float("nan")}}}, "a holds no plain numbers"),
        ({"optimizer": {"a": {"step": [1]}}}, "a holds no plain numbers"),
    ],
)
def test_a_state_whose_entries_are_wrong_is_damaged(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    parameters = learning(0)
    save_state(
        state_of(parameters, torch.optim.SGD(parameters.values(), lr=0.1)), tmp_path / "resume.pt", mark=TRAINING_STATE
    )
    torch.save(torch.load(tmp_path / "resume.pt") | changes, tmp_path / "damaged.pt")
    with pytest.raises(ConfigError) as caught:
        load_state(tmp_path / "damaged.pt")
    assert str(caught.value).startswith(f"{tmp_path / 'damaged.pt'} is damaged: {message}")


@pytest.mark.parametrize(
    "odd",
    [
        torch.ones(3, 2).to_sparse(),
        torch.ones(3, 2, device="meta"),
        torch.ones(3, 2, dtype=torch.complex64),
    ],
    ids=["sparse", "meta", "complex"],
)
@pytest.mark.parametrize("where", ["values", "average", "origins", "optimizer"])
@pytest.mark.filterwarnings("ignore")
def test_tensors_without_plain_numbers_are_damage(tmp_path: Path, where: str, odd: torch.Tensor) -> None:
    held = {"origins": {"a": (odd, odd)}, "optimizer": {"a": {"exp_avg": odd}}}.get(where, {"a": odd})
    parameters = learning(0)
    save_state(
        state_of(parameters, torch.optim.SGD(parameters.values(), lr=0.1)), tmp_path / "resume.pt", mark=TRAINING_STATE
    )
    torch.save(torch.load(tmp_path / "resume.pt") | {where: held}, tmp_path / "damaged.pt")
    with pytest.raises(ConfigError, match=r"damaged\.pt is damaged: a holds no plain numbers\."):
        load_state(tmp_path / "damaged.pt")


def test_a_state_lacks_no_entry(tmp_path: Path) -> None:
    parameters = learning(0)
    save_state(
        state_of(parameters, torch.optim.SGD(parameters.values(), lr=0.1)), tmp_path / "resume.pt", mark=TRAINING_STATE
    )
    held = torch.load(tmp_path / "resume.pt")
    del held["step"]
    torch.save(held, tmp_path / "resume.pt")
    with pytest.raises(ConfigError, match="is damaged: step: "):
        load_state(tmp_path / "resume.pt")


def test_a_fifo_is_no_state(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "resume.pt")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_state(tmp_path / "resume.pt")


@pytest.mark.parametrize("value", [None, torch.zeros(1, 2), torch.zeros(3, 3), torch.full((3, 2), torch.nan)], ids=str)
@pytest.mark.parametrize("where", ["values", "average"])
def test_values_that_parameters_cannot_take_are_damage(where: str, value: torch.Tensor | None) -> None:
    parameters = learning(0)
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    good = state_of(parameters, optimizer, average=copied(parameters))
    check_values(good, parameters, Path("resume.pt"))
    held = dict(copied(parameters))
    if value is None:
        del held["b.lora_up"]
    else:
        held["b.lora_up"] = value
    with pytest.raises(ConfigError, match=r"b\.lora_up must have finite values of shape \(3, 2\)"):
        check_values(replace(good, **{where: held}), parameters, Path("resume.pt"))


def test_what_an_optimizer_has_kept_is_finite() -> None:
    parameters = learning(0)
    optimizer = torch.optim.AdamW(parameters.values())
    step(parameters, optimizer, 0)
    optimizer.state[parameters["b.lora_up"]]["exp_avg"] *= torch.nan
    with pytest.raises(ConfigError, match=r"the optimizer's values of b\.lora_up are not finite"):
        check_values(state_of(parameters, optimizer), parameters, Path("resume.pt"))


def test_the_bytes_are_the_same_after_a_state_was_read(tmp_path: Path) -> None:
    parameters = learning(0)
    optimizer = torch.optim.AdamW(parameters.values())
    step(parameters, optimizer, 0)
    for name in ("a", "b"):
        save_state(
            load_state(tmp_path / "a") if name == "b" else state_of(parameters, optimizer),
            tmp_path / name,
            mark=TRAINING_STATE,
        )
    one, two = (ZipFile(tmp_path / name).read("archive/data.pkl") for name in ("a", "b"))
    assert one == two
