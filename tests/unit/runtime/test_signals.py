"""The signals that stop a process: the first signal stops it in order, and the second at once."""

import os
import signal
import subprocess
import sys
from queue import Queue

import pytest

from loader.runtime.signals import handle_signals

SIGNALS = [signal.SIGTERM, signal.SIGINT]
STOPPED_BY_SIGNALS = """
import os, signal
from loader.runtime.signals import stopped_by_signals
with stopped_by_signals() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    stop.wait()
    print("stopping", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    while True:
        signal.pause()
"""


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_first_signal_stops_the_process_and_each_later_signal_ends_it(
    first: signal.Signals, second: signal.Signals
) -> None:
    """SIGTERM and SIGINT are equal, in any order."""
    calls: Queue[int] = Queue()
    with handle_signals(lambda: calls.put(0), calls.put):
        os.kill(os.getpid(), first)
        assert calls.get(timeout=20) == 0
        for _ in range(2):
            os.kill(os.getpid(), second)
            assert calls.get(timeout=20) == second
    assert calls.empty()


def test_the_previous_handlers_are_restored() -> None:
    """After the block, Ctrl-C interrupts the process as before."""
    before = [signal.getsignal(number) for number in SIGNALS]
    with handle_signals(lambda: None, lambda _: None):
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_signal_with_another_handler_neither_stops_nor_ends_the_process() -> None:
    """A signal with a handler of its own, such as SIGUSR1, wakes the thread and changes nothing."""
    calls: Queue[int] = Queue()
    before = signal.signal(signal.SIGUSR1, lambda _number, _frame: None)
    try:
        with handle_signals(lambda: calls.put(0), calls.put):
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert calls.get(timeout=20) == 0
        assert calls.empty()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_second_signal_ends_the_process_with_the_code_of_the_signal() -> None:
    """The first signal sets the event. The second ends a process that does not stop."""
    finished = subprocess.run([sys.executable, "-c", STOPPED_BY_SIGNALS], check=False, capture_output=True, text=True)
    assert (finished.stdout, finished.returncode) == ("stopping\n", 128 + signal.SIGINT)
