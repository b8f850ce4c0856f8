"""How many threads there are, and who says so."""

import os
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import torch

from lbm_lora import threads
from lbm_lora.errors import ConfigError
from lbm_lora.parallel import ordered_map
from lbm_lora.threads import (
    SMALL_MODEL,
    chosen_threads,
    fit_threads,
    share_cores,
    sleep_while_waiting,
    thread_choice,
    usable_cores,
    use_large_pages,
    worker_count,
)

LARGE = 2_600_000_000
MINI = 7_000_000


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """A machine of eight cores, all of them torch's, and a user who has set nothing."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(threads, "usable_cores", lambda: 8)
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
        assert (torch.get_num_threads(), worker_count()) == (5, 5)
    assert said == []


def test_the_environment_is_the_users_word_and_the_option_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    torch.set_num_threads(6)  # as torch does when it is loaded
    with chosen_threads(None, print):
        fit_threads(MINI)
        assert torch.get_num_threads() == 6
    with chosen_threads(2, print):
        assert torch.get_num_threads() == 2
    assert os.environ["OMP_NUM_THREADS"] == "6"


def test_a_container_with_fewer_cores_than_the_machine_gets_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 2)
    with chosen_threads(None, print):
        fit_threads(LARGE)
        assert (torch.get_num_threads(), worker_count()) == (2, 2)


@pytest.mark.parametrize(("parameters", "expected"), [(MINI, 1), (LARGE, 4)])
def test_processes_of_one_machine_share_its_cores(parameters: int, expected: int) -> None:
    with chosen_threads(None, lambda _: None):
        share_cores(2)
        fit_threads(parameters)
        assert torch.get_num_threads() == expected
        assert os.environ["OMP_NUM_THREADS"] == str(expected), "what Fabric's processes are started with"


def test_more_processes_than_cores() -> None:
    with chosen_threads(None, print):
        share_cores(30)
        assert (torch.get_num_threads(), worker_count()) == (1, 1)


def test_tensors_are_worked_on_by_every_core_behind_a_small_model_too() -> None:
    assert worker_count() == 8
    with chosen_threads(None, lambda _: None):
        fit_threads(MINI)
        assert worker_count() == 8
        assert set(ordered_map(lambda _: torch.get_num_threads(), range(9))) == {1}
        assert torch.get_num_threads() == 1


@pytest.mark.parametrize("asked", [0, -1])
def test_less_than_one_thread_is_refused(asked: int) -> None:
    with pytest.raises(ConfigError, match=f"threads must be at least 1, got {asked}"), chosen_threads(asked, print):
        pass


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "max 100000\n"}, 6),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "9000000 100000\n"}, 6),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 6),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu.max": "nonsense"}, 6),
        ({}, 6),
    ],
)
def test_affinity_and_the_quota_of_a_container(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(threads, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert usable_cores() == expected


def test_without_an_affinity_the_machines_cores_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(threads, "_CGROUP", tmp_path)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert usable_cores() == 12


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


def test_the_command_line_says_how_to_wait_before_torch_is_loaded() -> None:
    code = (
        "import os, sys\nfrom lbm_lora.cli.main import main\n"
        "main(['--version'])\nsys.exit('torch' in sys.modules or os.environ['OMP_WAIT_POLICY'] != 'PASSIVE')"
    )
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_the_choice_says_whether_it_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert thread_choice() == (torch.get_num_threads(), True)
    with chosen_threads(3, print):
        assert thread_choice() == (3, True)
    with chosen_threads(None, print):
        assert not thread_choice()[1]
