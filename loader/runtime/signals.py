"""The policy for SIGTERM and SIGINT: the first signal stops a long-lived process in order, each later one at once."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger("loader")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def handle_signals(stop: Callable[[], object], end: Callable[[int], object]) -> Iterator[None]:
    """Call `stop` at the first SIGTERM or SIGINT of a block, and `end` at each later one.

    Both are called in a thread that only waits for signals. The main thread may be inside a library that returns late,
    or hold the lock that a callback needs: a handler in the main thread would then wait for itself.

    Args:
        stop: Asks the process to stop in order.
        end: Ends the process at once; it receives the number of the signal.
    """
    here, there = socket.socketpair()
    there.setblocking(False)
    kept = {number: signal.signal(number, lambda _number, _frame: None) for number in _SIGNALS}
    wakeup = signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        is_stopping = False
        while received := here.recv(1):
            number = received[0]
            if number not in _SIGNALS:
                continue
            if is_stopping:
                end(number)
            else:
                is_stopping = True
                stop()

    watcher = threading.Thread(target=watch, name="loader-signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in kept.items():
            signal.signal(number, handler)
        there.close()
        watcher.join()
        here.close()


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """Yield an event that the first SIGTERM or SIGINT sets; a second signal ends the process with exit code 128 + n."""
    stop = threading.Event()

    def ask() -> None:
        logger.info("stopping after the run under way; a second signal ends that run at once")
        stop.set()

    def end(number: int) -> None:
        logger.warning("stopped at once by a second signal; committed work is kept")
        os._exit(128 + number)

    with handle_signals(ask, end):
        yield stop
