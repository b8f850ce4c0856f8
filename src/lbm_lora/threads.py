"""Choose the number of threads of a program: one for a small model, every core for a large one.

torch takes every core by default, and its threads spin while they wait for each other. In a small model each product is
so short that the waiting is most of the work, and on a machine with other load it takes many times as long.

    with chosen_threads(asked, say):    # a program: the command line
        fit_threads(parameters)         # where a model is built

Threads belong to the program: outside of `chosen_threads` nothing here changes torch's. The choice depends on the size
of the model and the cores that the process may use, never on a measurement or on the load: outputs of a network can
depend on the number of threads in their last bits, and the same command has to give the same bytes. See decision 15.
"""

import math
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from lbm_lora.errors import ConfigError, Option

SMALL_MODEL = 100_000_000
"""Models of fewer parameters get one thread. The mini model has 7 million, LBM 2.6 billion."""

_VARIABLE = "OMP_NUM_THREADS"
_CGROUP = Path("/sys/fs/cgroup")


@dataclass
class _Choice:
    """Choice of the running program.

    Attributes:
        most: threads for a large model, and for work on many tensors.
        is_fixed: whether the user has given that number, for models of every size.
        say: takes one line for the user; each line once.
        said: the last line.
    """

    most: int
    is_fixed: bool
    say: Callable[[str], None]
    said: str = ""


_choice: ContextVar[_Choice | None] = ContextVar("threads", default=None)


def sleep_while_waiting() -> None:
    """Let threads of OpenMP sleep, not spin, while they wait; a user's own OMP_WAIT_POLICY stays.

    It changes no result, and costs microseconds for each product. Works only before torch is loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def use_large_pages() -> None:
    """Let torch ask Linux for large pages for large tensors; a user's own THP_MEM_ALLOC_ENABLE stays.

    It changes no result, and saves page faults of temporary tensors. Works only before torch is loaded.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


@contextmanager
def chosen_threads(asked: int | None, say: Callable[[str], None]) -> Generator[None]:
    """Let models set torch's number of threads within the block, and restore it afterwards.

    Args:
        asked: the user's number, at least 1. None: OMP_NUM_THREADS if it is set, else by the model's size.
        say: takes one line that the user should read.

    Raises:
        ConfigError: `asked` is below 1.
    """
    if asked is not None and asked < 1:
        raise ConfigError(Option("threads"), f" must be at least 1, got {asked}.")
    import torch  # imported late: the command line imports this module to answer --help

    before, variable = torch.get_num_threads(), os.environ.get(_VARIABLE)
    is_fixed = asked is not None or variable is not None
    most = asked or (before if variable is not None else min(before, usable_cores()))
    token = _choice.set(_Choice(most, is_fixed, say))
    _set(most)
    try:
        yield
    finally:
        _choice.reset(token)
        torch.set_num_threads(before)
        if variable is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = variable


def fit_threads(parameters: int) -> None:
    """Set torch's number of threads for a model, within `chosen_threads`; elsewhere do nothing.

    Args:
        parameters: number of parameters of the model, all networks together.
    """
    choice = _choice.get()
    if choice is None or choice.is_fixed:
        return
    is_small = parameters < SMALL_MODEL
    _set(1 if is_small else choice.most)
    line = f"1 of {choice.most} threads: the model is small ({parameters / 1e6:.0f} million parameters)."
    if is_small and choice.most > 1 and line != choice.said:
        choice.said = line
        choice.say(line)


def share_cores(processes: int) -> None:
    """Divide the threads of a program among its processes on this machine, unless the user has given their number."""
    choice = _choice.get()
    if choice is not None and not choice.is_fixed:
        choice.most = max(1, choice.most // processes)
        _set(min(choice.most, torch_threads()))


def worker_count() -> int:
    """Return the threads for work on many tensors, each computed by one thread: the size of a model does not matter."""
    choice = _choice.get()
    return torch_threads() if choice is None else choice.most


def thread_choice() -> tuple[int, bool]:
    """Return the threads for a large model, and whether that is the user's own number, for models of every size."""
    choice = _choice.get()
    return (torch_threads(), True) if choice is None else (choice.most, choice.is_fixed)


def torch_threads() -> int:
    """Return torch's own number of threads."""
    import torch

    return torch.get_num_threads()


def usable_cores() -> int:
    """Return the cores that this process may use, at least 1: its affinity and its container CPU quota, rounded up."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(affinity, _quota())))


def _quota() -> float:
    """Cores' worth of time that the process's control group gets; infinite without a limit, or outside of Linux."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((_CGROUP / file).read_text(encoding="ascii") for file in files).split()
            if quota.isdecimal() and int(quota) > 0:  # `max` and -1 mean no limit
                return int(quota) / int(period)
        except (OSError, ValueError):
            continue
    return math.inf


def _set(threads: int) -> None:
    """Also for processes that are started later: Fabric gives its own to those that find no number."""
    import torch

    torch.set_num_threads(threads)
    os.environ[_VARIABLE] = str(threads)
