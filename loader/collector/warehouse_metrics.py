"""Updates the metrics that come from the database: lag of the tables, quarantine, scheduler and destinations.

The metrics are updated when a client requests `/metrics`, but at most once every few seconds.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence

import psycopg

from loader.errors import LoaderError
from loader.postgres.kept_connection import KeptConnection
from loader.raw.destinations import Destination, Progress, list_destinations, read_progress
from loader.raw.lag import Freshness, freshness
from loader.runtime import metrics

# Shortest time between two updates.
_AGAIN_SECONDS = 2.0

# How long the database may take for an update.
_ANSWER_SECONDS = 5.0


class WarehouseMetrics:
    """Updates the metrics that come from the database; any thread may call `refresh`.

    Args:
        connect: Opens a connection to the database, in autocommit.
        count_foreign: Counts the segments of the spool that belong to another warehouse.
    """

    def __init__(self, connect: Callable[[], psycopg.Connection], count_foreign: Callable[[], object]) -> None:
        self._kept = KeptConnection(connect)
        self._count_foreign = count_foreign
        self._looking = threading.Lock()
        self._looked = float("-inf")
        self._reasons: set[str] = set()

    def refresh(self) -> None:
        """Update the metrics, unless they have just been updated or another thread is updating them.

        If the database does not answer, the lag of the tables and the scheduler's failures become NaN.
        """
        if time.monotonic() - self._looked < _AGAIN_SECONDS or not self._looking.acquire(blocking=False):
            return
        try:
            with self._kept.use(_ANSWER_SECONDS) as connection:
                self._count_foreign()
                self._tell(freshness(connection))
                destinations = list_destinations(connection)
                self._tell_deliveries(destinations, read_progress(connection) if destinations else [])
        except (psycopg.Error, LoaderError, OSError):
            for unknown in (metrics.oldest_waiting_seconds, metrics.waiting_events, metrics.schedule_failures):
                unknown.set(math.nan)
        finally:
            self._looked = time.monotonic()
            self._looking.release()

    def close(self) -> None:
        """Close the connection."""
        self._kept.close()

    def _tell(self, seen: Freshness) -> None:
        metrics.oldest_waiting_seconds.set(seen.oldest_seconds or 0)
        metrics.waiting_events.set(seen.waiting)
        metrics.schedule_failures.set(math.nan if seen.failures is None else seen.failures)
        metrics.last_transform_timestamp_seconds.set(seen.last_success_at.timestamp() if seen.last_success_at else 0)
        for reason in self._reasons | seen.quarantine.keys():
            metrics.open_quarantine.labels(reason).set(seen.quarantine.get(reason, 0))
        self._reasons |= seen.quarantine.keys()

    @staticmethod
    def _tell_deliveries(destinations: Sequence[Destination], progress: Sequence[Progress]) -> None:
        for gauge in (
            metrics.delivery_waiting_events,
            metrics.delivery_oldest_seconds,
            metrics.delivery_requests,
            metrics.delivery_events,
            metrics.delivery_paused,
        ):
            # A removed destination has no values any more.
            gauge.clear()
        for destination in destinations:
            name = destination.name
            own = [each for each in progress if each.destination == name]
            metrics.delivery_paused.labels(name).set(destination.state == "paused")
            metrics.delivery_waiting_events.labels(name).set(sum(each.waiting for each in own))
            metrics.delivery_oldest_seconds.labels(name).set(max((each.oldest_seconds or 0 for each in own), default=0))
            for code, number in destination.requests.items():
                metrics.delivery_requests.labels(name, code).set(number)
            for outcome in ("delivered", "filtered", "repeated", "dead"):
                metrics.delivery_events.labels(name, outcome).set(sum(getattr(each, outcome) for each in own))
