"""Declares all metrics of the collector and renders them for Prometheus."""

import os
import threading

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE

from loader.runtime.terminal import count

__all__ = ["CONTENT_TYPE", "render"]

# Processes that share a port share their metrics through files in this folder.
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"

registry = CollectorRegistry()

requests = Counter("loader_requests", "Requests, by route and status code.", ["route", "code"], registry=registry)
_fast_requests = Counter("loader_fast_requests", "Requests that took the fast path.", registry=registry)
landed_events = Counter("loader_landed_events", "Events written to the database.", registry=registry)
spooled_events = Counter("loader_spooled_events", "Events written to the spool.", registry=registry)
quarantined = Counter(
    "loader_quarantined_messages", "Messages put in quarantine, by reason.", ["reason"], registry=registry
)
dropped = Counter(
    "loader_dropped_requests",
    "Requests answered as Segment answers an unknown key: 200, and dropped.",
    registry=registry,
)
returned_calls = Counter(
    "loader_returned_calls",
    "Calls that this warehouse has forwarded and that came back: answered with 200, and not landed.",
    registry=registry,
)
batch_events = Histogram(
    "loader_batch_events",
    "Events that shared a commit.",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000),
    registry=registry,
)
commit_seconds = Histogram(
    "loader_commit_seconds",
    "Time from handing a batch to the database to its commit.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
    registry=registry,
)
queue_bytes = Gauge(
    "loader_queue_bytes", "Bytes waiting to be written.", multiprocess_mode="livesum", registry=registry
)
spool_bytes = Gauge("loader_spool_bytes", "Bytes waiting in the spool.", multiprocess_mode="livesum", registry=registry)
foreign_spool_bytes = Gauge(
    "loader_foreign_spool_bytes",
    "Bytes in the spool's folder that belong to another warehouse; no process lands them without `loader spool land`.",
    multiprocess_mode="mostrecent",
    registry=registry,
)
clock_offset_seconds = Gauge(
    "loader_clock_offset_seconds",
    "Seconds by which the database's clock is ahead of this machine's.",
    multiprocess_mode="mostrecent",
    registry=registry,
)
database_up = Gauge(
    "loader_database_up",
    "1 while events go to the database, 0 while they go to the spool.",
    multiprocess_mode="livemin",
    registry=registry,
)
connections = Gauge("loader_connections", "Open HTTP connections.", multiprocess_mode="livesum", registry=registry)
# Values that only the database knows; read for each answer of /metrics.
oldest_waiting_seconds = Gauge(
    "loader_oldest_waiting_seconds",
    "Age of the oldest event that is not in its table yet; 0 when no event is waiting, NaN when the age is unknown.",
    multiprocess_mode="mostrecent",
    registry=registry,
)
waiting_events = Gauge(
    "loader_waiting_events",
    "Events that are not in their tables yet; the count stops at 10,000 a table.",
    multiprocess_mode="mostrecent",
    registry=registry,
)
open_quarantine = Gauge(
    "loader_open_quarantine_messages",
    "Messages in quarantine that have not landed since, by reason.",
    ["reason"],
    multiprocess_mode="mostrecent",
    registry=registry,
)
schedule_failures = Gauge(
    "loader_schedule_failures",
    "Failures in a row of the scheduler at work; NaN when no scheduler is alive.",
    multiprocess_mode="mostrecent",
    registry=registry,
)
last_transform_timestamp_seconds = Gauge(
    "loader_last_transform_timestamp_seconds",
    "When a run last filled every table; 0 before the first such run.",
    multiprocess_mode="mostrecent",
    registry=registry,
)


# Values of destinations; the worker records them in the database.
delivery_waiting_events = Gauge(
    "loader_delivery_waiting_events",
    "Events that the tables have and the destination has not got; the count stops at 10,000 a source.",
    ["destination"],
    multiprocess_mode="mostrecent",
    registry=registry,
)
delivery_oldest_seconds = Gauge(
    "loader_delivery_oldest_seconds",
    "Age of the oldest of these events; 0 when no event is waiting.",
    ["destination"],
    multiprocess_mode="mostrecent",
    registry=registry,
)
delivery_requests = Gauge(
    "loader_delivery_requests_total",
    "Requests to the destination, by the status of the answer; 0 stands for no answer.",
    ["destination", "code"],
    multiprocess_mode="mostrecent",
    registry=registry,
)
delivery_events = Gauge(
    "loader_delivery_events_total",
    "Events by their outcome: delivered, filtered, repeated, dead.",
    ["destination", "outcome"],
    multiprocess_mode="mostrecent",
    registry=registry,
)
delivery_paused = Gauge(
    "loader_delivery_paused",
    "1 while the destination is paused, by a person or because the receiver refuses the key or the events.",
    ["destination"],
    multiprocess_mode="mostrecent",
    registry=registry,
)


def render() -> bytes:
    """Return all metrics in Prometheus' text format, including those of the other processes on the same port."""
    flush()
    if SHARED_FOLDER not in os.environ:
        return generate_latest(registry)
    together = CollectorRegistry()
    multiprocess.MultiProcessCollector(together)  # type: ignore[no-untyped-call]
    return generate_latest(together)


def forget_process(number: int, folder: str) -> None:
    """Remove an ended process from the metrics of its port.

    Args:
        number: The process id.
        folder: The folder that the processes of the port share.
    """
    multiprocess.mark_process_dead(number, path=folder)  # type: ignore[no-untyped-call]


class Refusals:
    """Counts the refusals of a process since its last report; any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._messages = self._unknown_keys = 0

    def add(self, *, messages: int = 0, unknown_keys: int = 0) -> None:
        """Count messages that went to quarantine, or requests with a key that no source has."""
        with self._lock:
            self._messages += messages
            self._unknown_keys += unknown_keys

    def take(self) -> list[str]:
        """Return a line of text for each kind of refusal since the last call, and reset the counts."""
        with self._lock:
            messages, unknown_keys = self._messages, self._unknown_keys
            self._messages = self._unknown_keys = 0
        lines = [f"{count(messages, 'message')} refused"] if messages else []
        return lines + ([f"{count(unknown_keys, 'request')} with an unknown key"] if unknown_keys else [])


refusals = Refusals()

# Returned calls by source, until the process reports them to the database.
_returned: dict[str, int] = {}
_returned_lock = threading.Lock()


def count_returned(source: str, number: int) -> None:
    """Count calls of a source that came back; any thread may count."""
    if number:
        returned_calls.inc(number)
        with _returned_lock:
            _returned[source] = _returned.get(source, 0) + number


def take_returned() -> dict[str, int]:
    """Return the returned calls by source since the last call, and reset the counts."""
    with _returned_lock:
        taken = dict(_returned)
        _returned.clear()
    return taken


_answered: dict[tuple[str, int], int] = {}
# Requests that took the fast path since the last `flush`.
fast_requests = 0


def count_request(route: str, status: int) -> None:
    """Count a request; `flush` adds it to the metrics."""
    _answered[route, status] = _answered.get((route, status), 0) + 1


def flush() -> None:
    """Add the counted requests to the metrics; done in batches, because a metric takes a lock for each change."""
    global fast_requests
    while _answered:
        (route, status), number = _answered.popitem()
        requests.labels(route, str(status)).inc(number)
    number, fast_requests = fast_requests, 0
    _fast_requests.inc(number)
