"""Sends batches until the receiver takes or refuses them: waits, tries again, and records how the destination is.

A batch that gets no answer, or an answer that asks for patience, is sent again without end. A refused key or address
pauses the destination, and the same batch is the probe that ends the pause.
"""

import math
import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence

import psycopg
import structlog

from loader.destinations.clock import Clock
from loader.destinations.model import Call, Dead, Outcome, Receiver, Reply
from loader.destinations.shared import Pace
from loader.errors import ConfigurationError
from loader.raw.destinations import Destination, read_destination, record_state

FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 300.0
PROBE_SECONDS = 300.0

# The destination is read so often, because a person may pause, resume or remove it.
_LOOK_SECONDS = 5.0
_FLUSH_SECONDS = 2.0
_MOST_DOUBLINGS = 16

log = structlog.get_logger("loader")


class HaltedError(Exception):
    """The delivery must end: the process stops, or a person has paused or removed the destination."""


class Sender:
    """Sends the batches of one delivery; several threads may call `send`.

    Args:
        connection: A connection in autocommit, which only one thread uses at a time.
        destination: The destination.
        clock: The clock.
        stop: Set when the process stops.
        pace: The turns of all deliveries of the destination.
        rate: Largest number of requests a second of all deliveries; 0 for no limit.
        own_rate: Largest number of requests a second of this delivery; 0 for no limit.
        patience_seconds: Seconds after the first failure of a batch after which the delivery gives up.

    Attributes:
        name: The name of the destination.
    """

    def __init__(
        self,
        connection: psycopg.Connection,
        destination: Destination,
        clock: Clock,
        stop: threading.Event,
        *,
        pace: Pace,
        rate: float,
        own_rate: float = 0.0,
        patience_seconds: float = math.inf,
    ) -> None:
        self._connection = connection
        self._id = destination.id
        self.name = destination.name
        self._clock = clock
        self._stop = stop
        self._limits = [(pace, rate), (Pace(), own_rate)]
        self._patience_seconds = patience_seconds
        self._lock = threading.Lock()
        self._state = (destination.state, destination.pause_reason)
        self._requests: Counter[str] = Counter()
        self._notes: Counter[str] = Counter()
        self._has_delivered = False
        self._flushed_at = self._looked_at = clock.seconds()

    def see(self, destination: Destination) -> None:
        """Take over the state of the destination, which a person or another delivery may have changed."""
        self._state = (destination.state, destination.pause_reason)

    def resolve(
        self, receiver: Receiver, calls: Sequence[Call], window: str
    ) -> Iterator[tuple[Sequence[Call], Sequence[Dead]]]:
        """Send a batch; halve a refused batch until each refused call is alone.

        Yields:
            Calls that are done, and those of them that the receiver did not accept.

        Raises:
            HaltedError: The delivery must end; calls that were not yielded are not done.
        """
        reply = self.send(receiver, calls, window)
        if reply.outcome is Outcome.TAKEN:
            singly = {call.seq for call in reply.singly}
            if len(singly) < len(calls):
                yield [call for call in calls if call.seq not in singly], reply.dead
            for call in reply.singly:
                yield from self.resolve(receiver, [call], window)
        elif len(calls) == 1:
            yield calls, [Dead(calls[0], reply.status, reply.reason, reply.answer)]
        else:
            blamed = {call.seq for call in reply.culprits}
            dead = [Dead(call, reply.status, reply.reason, reply.answer) for call in calls if call.seq in blamed]
            if dead:
                yield [each.call for each in dead], dead
            rest = [call for call in calls if call.seq not in blamed]
            # An answer may name one of many bad calls. Without halves, all others would go again for each bad call.
            middle = (len(rest) + 1) // 2
            for half in filter(None, (rest[:middle], rest[middle:])):
                yield from self.resolve(receiver, half, window)

    def send(self, receiver: Receiver, calls: Sequence[Call], window: str) -> Reply:
        """Send a batch until the receiver takes or refuses it.

        Raises:
            HaltedError: The delivery must end.
        """
        failures = 0
        give_up_at = math.inf
        while True:
            self._pace()
            reply = self._attempt(receiver, calls, window)
            if reply.outcome in {Outcome.TAKEN, Outcome.REFUSED}:
                with self._lock:
                    self._has_delivered = True
                    self._notes.update(reply.notes)
                    if self._state != ("active", None):
                        self._record("active")
                return reply
            if self._stop.is_set():
                raise HaltedError
            if not failures:
                give_up_at = self._clock.seconds() + self._patience_seconds
            failures += 1
            if reply.outcome is Outcome.CONFIG:
                self._fail("paused", "config", reply.reason, PROBE_SECONDS, give_up_at)
            else:
                # A receiver that names no time, or the present time, is asked less and less often.
                wait = reply.wait_seconds if reply.wait_seconds and reply.wait_seconds >= 1 else _jitter(failures)
                self._fail("failing", None, reply.reason, wait, give_up_at)

    def flush(self, *, at_once: bool = False) -> None:
        """Record the numbers of requests, unless they were recorded just now."""
        with self._lock:
            has_news = bool(self._requests or self._notes or self._has_delivered)
            if has_news and (at_once or self._clock.seconds() - self._flushed_at >= _FLUSH_SECONDS):
                self._record(*self._state)

    def reject(self, error: str) -> None:
        """Pause the destination, because its receiver refuses too many events.

        Raises:
            HaltedError: Always.
        """
        log.error("destination is paused", destination=self.name, reason=error)
        with self._lock:
            self._record("paused", "rejecting", error)
        raise HaltedError

    def _attempt(self, receiver: Receiver, calls: Sequence[Call], window: str) -> Reply:
        try:
            reply = receiver.send(calls, window=window)
        except ConfigurationError as error:
            return Reply(Outcome.CONFIG, None, str(error))
        if reply.status is not None:
            with self._lock:
                self._requests[str(reply.status)] += 1
        return reply

    def _pace(self) -> None:
        """Wait for the turn of the next request.

        Raises:
            HaltedError: The delivery must end.
        """
        now = self._clock.seconds()
        turn = max(pace.take_turn("requests", rate, now) for pace, rate in self._limits)
        self._wait_until(turn)
        self._look_at_times()
        if self._stop.is_set():
            raise HaltedError

    def _wait_until(self, until: float, *, ends_when_active: bool = False) -> None:
        """Wait, and look at the destination meanwhile.

        Args:
            until: The end of the wait.
            ends_when_active: Whether the wait ends when a person has resumed the destination.

        Raises:
            HaltedError: The delivery must end.
        """
        while (left := until - self._clock.seconds()) > 0:
            self._clock.wait(self._stop, min(left, _LOOK_SECONDS))
            if self._stop.is_set():
                raise HaltedError
            if not ends_when_active:
                self._look_at_times()
            elif self._look() == "active":
                return

    def _look_at_times(self) -> None:
        """Look at the destination, unless the last look was just now.

        Raises:
            HaltedError: A person has paused or removed the destination.
        """
        if self._clock.seconds() - self._looked_at >= _LOOK_SECONDS:
            self._look()

    def _look(self) -> str:
        """Return the state of the destination.

        Raises:
            HaltedError: A person has paused or removed the destination.
        """
        with self._lock:
            present = read_destination(self._connection, self._id)
            self._looked_at = self._clock.seconds()
        if present is None or present.waits_for_person:
            raise HaltedError
        return present.state

    def _fail(self, state: str, pause_reason: str | None, error: str, seconds: float, give_up_at: float) -> None:
        """Record a failure, and wait, unless the next try comes too late.

        Raises:
            HaltedError: The delivery must end.
        """
        log.warning(
            "delivery failed",
            destination=self.name,
            state=pause_reason or state,
            reason=error,
            next_try=round(seconds),
        )
        with self._lock:
            self._record(state, pause_reason, error, seconds)
        until = self._clock.seconds() + seconds
        if until > give_up_at:
            raise HaltedError
        self._wait_until(until, ends_when_active=True)

    def _record(
        self,
        state: str,
        pause_reason: str | None = None,
        error: str | None = None,
        next_try_seconds: float | None = None,
    ) -> None:
        if state == "active" and self._state[0] != "active":
            log.info("destination accepts events again", destination=self.name)
        record_state(
            self._connection,
            self._id,
            state,
            pause_reason=pause_reason,
            error=error,
            next_try_seconds=next_try_seconds,
            requests=self._requests,
            notes=self._notes,
            has_delivered=self._has_delivered,
        )
        self._state = (state, pause_reason)
        self._requests, self._notes, self._has_delivered = Counter(), Counter(), False
        self._flushed_at = self._clock.seconds()


def _jitter(failures: int) -> float:
    """Return the wait after so many failures in a row: any time up to a limit that doubles."""
    limit = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** min(failures - 1, _MOST_DOUBLINGS))
    return random.uniform(0, limit)  # noqa: S311 - no secret
