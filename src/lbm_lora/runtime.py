"""Threads and signals of a program.

One thread for a small model, every core for a large one: torch takes every core by default, and its threads spin while
they wait for each other. In a small model each product is so short that the waiting is most of the work, and on a
machine with other load it takes many times as long.

    with chosen_threads(asked, say):    # a program: the command line
        fit_threads(parameters)         # where a model is built

Outside of `chosen_threads` nothing here changes torch's threads. The choice depends on the size of the model and the
cores that the process may use, never on a measurement or on the load: outputs of a network can depend on the number of
threads in their last bits, and the same command has to give the same bytes. See decision 15.

SIGTERM, SIGHUP or Ctrl-C asks a run to save and stop (`StopRequest`); a second signal ends it at once. A command
without such a run ends at once, by an exception, so that nothing half-written stays behind. SIGHUP, which a closed
terminal sends, is left alone where it is ignored (nohup), and may come twice.
"""

import math
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TypeVar

from lbm_lora.errors import ConfigError, Option

SMALL_MODEL = 100_000_000
"""Models of fewer parameters get one thread. The mini model has 7 million, LBM 2.6 billion."""

Item = TypeVar("Item")
Result = TypeVar("Result")

_VARIABLE = "OMP_NUM_THREADS"
_CGROUP = Path("/sys/fs/cgroup")
_AHEAD = 8


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
    """
    if asked is not None and asked < 1:
        raise ConfigError(Option("threads"), f" must be at least 1, got {asked}.")
    before, variable = _torch_threads(), os.environ.get(_VARIABLE)
    is_fixed = asked is not None or variable is not None
    most = asked or (before if variable is not None else min(before, usable_cores()))
    token = _choice.set(_Choice(most, is_fixed, say))
    _set(most)
    try:
        yield
    finally:
        _choice.reset(token)
        _set(before)
        if variable is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = variable


def fit_threads(parameters: int) -> None:
    """Set torch's number of threads for a model, all networks together; outside of `chosen_threads` do nothing."""
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
        _set(min(choice.most, _torch_threads()))


def thread_choice() -> tuple[int, bool]:
    """Return the threads for a large model, and whether that is the user's own number, for models of every size."""
    choice = _choice.get()
    return (_torch_threads(), True) if choice is None else (choice.most, choice.is_fixed)


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


def _torch_threads() -> int:
    import torch  # imported late: the command line imports this module to answer --help

    return torch.get_num_threads()


def _set(threads: int) -> None:
    """Set the thread count for this and later processes; else Fabric sets its own."""
    import torch

    torch.set_num_threads(threads)
    os.environ[_VARIABLE] = str(threads)


def ordered_map(
    work: Callable[[Item], Result], items: Iterable[Item], *, threads: int | None = None
) -> Iterator[Result]:
    """Map over a few threads: results come in the order of the items, and only a bounded number run ahead.

    Two threads on two matrices are faster than two threads on one, and results do not depend on the number of threads,
    since a single thread computes each tensor.

    Args:
        work: called with one item, in a thread where torch itself uses one thread. Its errors propagate to the caller.
        threads: by default as many as the program may use; the size of a model does not matter.
    """
    import torch

    count = threads or thread_choice()[0]
    before = torch.get_num_threads()
    waiting: deque[Future[Result]] = deque()
    torch.set_num_threads(1)  # new threads inherit this
    try:
        with ThreadPoolExecutor(count, thread_name_prefix="lbm-lora") as pool:
            try:
                for item in items:
                    waiting.append(pool.submit(work, item))
                    if len(waiting) >= _AHEAD * count:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()
    finally:
        torch.set_num_threads(before)


_ENDING = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]  # Windows has no SIGHUP
_SIGNALS = (*_ENDING, signal.SIGINT)
_SECOND = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
"""Handlers for a second signal. A second SIGHUP is ignored, because the shell and the kernel may each send one."""


class StopRequest:
    """A context that, from `listen` on, only records the signals; on exit the old handlers return.

    Outside the main thread it does nothing.

    Attributes:
        asked: name of the signal received; empty if none was.
    """

    def __init__(self) -> None:
        self.asked = ""
        self._before: dict[signal.Signals, signal._HANDLER] = {}  # pyright: ignore[reportPrivateUsage]

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in _SIGNALS}
            is_nohup = {number for number in handlers if number not in _SECOND and handlers[number] == signal.SIG_IGN}
            self._before = {number: handler for number, handler in handlers.items() if number not in is_nohup}
        return self

    def listen(self) -> None:
        """Start recording the signals."""
        for number in self._before:
            signal.signal(number, self._note)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.asked = signal.Signals(number).name
        for known in self._before:
            signal.signal(known, _SECOND.get(known, signal.SIG_IGN))


def leave_to_parent(_worker: int) -> None:
    """Make a data-loading process ignore the signals: they may reach the process group, and its parent ends it."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, its `number`, as an exception."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.number = number


@contextmanager
def terminated_as_exception() -> Generator[None]:
    """Raise `Terminated` where the main thread is when SIGTERM or SIGHUP comes, as Python does for Ctrl-C."""
    is_main = threading.current_thread() is threading.main_thread()
    ours = [number for number in _ENDING if is_main and signal.getsignal(number) == signal.SIG_DFL]

    def end(number: int, _frame: FrameType | None) -> None:
        for one in ours:
            signal.signal(one, signal.SIG_IGN)  # what is half-written is being removed
        raise Terminated(number)

    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
