"""The first signal leaves a note, the second ends the process, and all is as before afterwards."""

import os
import signal
import threading

import pytest

from lbm_lora.signals import StopRequest, leave_to_parent


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
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


def test_processes_that_read_data_ignore_both(monkeypatch: pytest.MonkeyPatch) -> None:
    set_: dict[int, object] = {}
    monkeypatch.setattr("lbm_lora.signals.signal.signal", set_.__setitem__)
    leave_to_parent(0)
    assert set_ == {signal.SIGTERM: signal.SIG_IGN, signal.SIGINT: signal.SIG_IGN}
