"""Updates the metrics that come from the database: lag of the tables, quarantine, scheduler and destinations.

The metrics are updated when a client requests `/metrics`, but at most once every few seconds.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import psycopg

from loader.errors import LoaderError
from loader.postgres.kept_connection import KeptConnection
from loader.raw.destinations import Destination, Progress, list_destinations, read_progress
from loader.raw.lag import Freshness, freshness
from loader.runtime import metrics

if TYPE_CHECKING:
    from prometheus_client import Gauge

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
        self._deliveries: set[tuple[Gauge, tuple[str, ...]]] = set()

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

    def _tell_deliveries(self, destinations: Sequence[Destination], progress: Sequence[Progress]) -> None:
        values: dict[tuple[Gauge, tuple[str, ...]], float] = {}
        for destination in destinations:
            name = destination.name
            own = [each for each in progress if each.destination == name]
            values[metrics.delivery_paused, (name,)] = destination.state == "paused"
            values[metrics.delivery_waiting_events, (name,)] = sum(each.waiting for each in own)
            oldest = max((each.oldest_seconds or 0 for each in own), default=0)
            values[metrics.delivery_oldest_seconds, (name,)] = oldest
            for code, number in destination.requests.items():
                values[metrics.delivery_requests, (name, code)] = number
            for outcome in ("delivered", "filtered", "repeated", "dead"):
                values[metrics.delivery_events, (name, outcome)] = sum(getattr(each, outcome) for each in own)
        # Metrics that several processes share cannot forget labels, so a removed destination has zeros.
        for gauge, labels in self._deliveries | values.keys():
            gauge.labels(*labels).set(values.get((gauge, labels), 0))
        self._deliveries |= values.keys()
