"""How a process that stays is stopped: one signal asks it to, a second one does not ask."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("loader")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """Yield an event that the first SIGTERM or SIGINT sets; the second ends the process at once.

    A thread of its own waits for them: the main one may be inside a library that does not come back for a while, or in
    the event's own lock, where a handler that sets it would wait for itself.
    """
    stop = threading.Event()
    here, there = socket.socketpair()
    there.setblocking(False)
    kept = {number: signal.signal(number, lambda _number, _frame: None) for number in _SIGNALS}
    wakeup = signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        while received := here.recv(1):
            number = received[0]
            if number not in _SIGNALS:
                continue
            if stop.is_set():
                logger.warning("stopped at once by a second signal; what is committed is kept")
                os._exit(128 + number)
            logger.info("stopping after the run under way; a second signal ends it at once")
            stop.set()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in kept.items():
            signal.signal(number, handler)
        there.close()
        watcher.join()
        here.close()
