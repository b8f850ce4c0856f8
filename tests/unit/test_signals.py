"""The first signal leaves a note, the second ends the process, and all is as before afterwards."""

import os
import signal
import threading
from collections.abc import Generator

import pytest

from lbm_lora.signals import StopRequest, Terminated, leave_to_parent, terminated_as_exception


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


def test_in_another_thread_it_does_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def run() -> None:
        with StopRequest() as stop:
            stop.listen()
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_second_hangup_is_nothing() -> None:
    with StopRequest() as stop:
        stop.listen()
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.asked == "SIGHUP"


def test_an_ignored_hangup_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    with StopRequest() as stop, terminated_as_exception():
        stop.listen()
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.asked == ""
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_without_a_run_ends_by_an_exception(number: signal.Signals) -> None:
    with pytest.raises(Terminated) as raised, terminated_as_exception():
        os.kill(os.getpid(), number)
    assert raised.value.number == number
    assert signal.getsignal(number) is signal.SIG_DFL


def test_processes_that_read_data_ignore_all(monkeypatch: pytest.MonkeyPatch) -> None:
    set_: dict[int, object] = {}
    monkeypatch.setattr("lbm_lora.signals.signal.signal", set_.__setitem__)
    leave_to_parent(0)
    assert set_ == dict.fromkeys([signal.SIGTERM, signal.SIGHUP, signal.SIGINT], signal.SIG_IGN)
