"""How many threads there are, tensors in parallel, and what signals do."""

import os
import signal
import threading
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import torch

from lbm_lora import runtime
from lbm_lora.runtime import (
    SMALL_MODEL,
    StopRequest,
    chosen_threads,
    fit_threads,
    ordered_map,
    share_cores,
    sleep_while_waiting,
    thread_choice,
    usable_cores,
    use_large_pages,
)

LARGE = 2_600_000_000
MINI = 7_000_000


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """A machine of eight cores, all of them torch's, and a user who has set nothing."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(runtime, "usable_cores", lambda: 8)
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


def test_a_small_model_gets_one_thread_and_the_user_is_told_once() -> None:
    said: list[str] = []
    with chosen_threads(None, said.append):
        assert torch.get_num_threads() == 8
        for _ in range(2):
            fit_threads(MINI)
            assert torch.get_num_threads() == 1
        fit_threads(SMALL_MODEL)
        assert torch.get_num_threads() == 8
    assert said == ["1 of 8 threads: the model is small (7 million parameters)."]


def test_afterwards_everything_is_as_before() -> None:
    within: list[object] = []
    with pytest.raises(KeyError), chosen_threads(3, print):
        within.extend((torch.get_num_threads(), os.environ.pop("OMP_NUM_THREADS"), os.environ["OMP_NUM_THREADS"]))
    with chosen_threads(3, print):
        within.extend((torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]))
    assert within == [3, "3"]
    assert torch.get_num_threads() == 8
    assert "OMP_NUM_THREADS" not in os.environ
    fit_threads(MINI)
    assert torch.get_num_threads() == 8, "a library leaves the threads of its program alone"


def test_the_number_asked_for_holds_for_every_model_and_process() -> None:
    said: list[str] = []
    with chosen_threads(5, said.append):
        for parameters in (MINI, LARGE):
            fit_threads(parameters)
            assert torch.get_num_threads() == 5
        share_cores(2)
        assert (torch.get_num_threads(), thread_choice()[0]) == (5, 5)
    assert said == []


@pytest.mark.parametrize(("parameters", "expected"), [(MINI, 1), (LARGE, 4)])
def test_processes_of_one_machine_share_its_cores(parameters: int, expected: int) -> None:
    with chosen_threads(None, lambda _: None):
        share_cores(2)
        fit_threads(parameters)
        assert torch.get_num_threads() == expected
        assert os.environ["OMP_NUM_THREADS"] == str(expected), "what Fabric's processes are started with"


def test_tensors_are_worked_on_by_every_core_behind_a_small_model_too() -> None:
    assert thread_choice()[0] == 8
    with chosen_threads(None, lambda _: None):
        fit_threads(MINI)
        assert thread_choice()[0] == 8
        assert set(ordered_map(lambda _: torch.get_num_threads(), range(9))) == {1}
        assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "max 100000\n"}, 6),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({}, 6),
    ],
)
def test_affinity_and_the_quota_of_a_container(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(runtime, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert usable_cores() == expected


@pytest.mark.parametrize(
    ("variable", "set_default", "ours", "users"),
    [
        ("OMP_WAIT_POLICY", sleep_while_waiting, "PASSIVE", "ACTIVE"),
        ("THP_MEM_ALLOC_ENABLE", use_large_pages, "1", "0"),
    ],
)
def test_a_variable_of_the_user_stays(
    monkeypatch: pytest.MonkeyPatch, variable: str, set_default: Callable[[], None], ours: str, users: str
) -> None:
    monkeypatch.delenv(variable, raising=False)
    set_default()
    assert os.environ[variable] == ours
    monkeypatch.setenv(variable, users)
    set_default()
    assert os.environ[variable] == users


@pytest.mark.parametrize("threads", [1, 5])
def test_results_come_in_the_order_of_the_items(threads: int) -> None:
    turns = [threading.Event() for _ in range(6)]
    turns[0].set()

    def work(item: int) -> int:
        # with several threads the later item of each pair finishes first
        if threads > 1 and item % 2 == 0 and item + 1 < 6:
            turns[item + 1].wait(0.05)
        turns[item].set()
        return item * item

    assert list(ordered_map(work, range(6), threads=threads)) == [0, 1, 4, 9, 16, 25]


def test_an_error_reaches_the_reader_and_ends_the_work() -> None:
    done: list[int] = []

    def work(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        done.append(item)
        return item

    with pytest.raises(ValueError, match=r"^three$"):
        list(ordered_map(work, range(1000), threads=2))
    assert len(done) < 20


@pytest.fixture(autouse=True)
def no_nohup() -> Generator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_first_signal_leaves_a_note(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert signal.getsignal(number) is before  # nothing is taken before the steps begin
        stop.listen()
        assert stop.asked == ""
        os.kill(os.getpid(), number)
        assert stop.asked == number.name
    assert signal.getsignal(number) is before


def test_the_second_one_interrupts() -> None:
    with StopRequest() as stop:
        stop.listen()
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
