"""Keeps the write keys in memory and in a file, so that a request needs no query.

The keys are read again every few seconds, and sooner when a request has an unknown key.

A copy of the keys lies beside the spool. With the copy, a collector that starts while the database is away still
accepts events. Like the database, the copy has only digests.

Write keys of one warehouse admit no sender to another warehouse. The copy has the id of the warehouse of its keys. Each
segment of the spool has the id of the warehouse whose keys admitted its events.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psycopg
import structlog

from loader.errors import LoaderError
from loader.postgres.kept_connection import KeptConnection
from loader.postgres.warehouse import Warehouse
from loader.raw.active_keys import read_active_keys, record_returned, record_use
from loader.raw.sources import key_digest
from loader.runtime import metrics

# Time between two reads of the keys. While the database answers, known keys are hardly older than this.
REFRESH_SECONDS = 5.0

# Shortest time between two reads because of unknown keys. So a sender who guesses keys does not cause a read for each.
ASK_AGAIN_SECONDS = 1.0

# Time between two reports of used keys to the database. The recorded last use of a key may be late by this time.
_USED_SECONDS = 60.0

_ANSWER_SECONDS = 10.0

_REMEMBERED = 10_000

log = structlog.get_logger("loader")


class WriteKeys:
    """The write keys in use; any thread may call its methods.

    Args:
        connect: Opens a connection to the database, in autocommit.
        copy: The file for the copy of the keys; None disables the copy.
        warehouse: The id and the clock of the database's warehouse, which each read of the keys updates.

    Attributes:
        asked: The time of the last attempt to read the keys, by `time.monotonic()`.
        current: Whether the last attempt succeeded.
    """

    def __init__(self, connect: Callable[[], psycopg.Connection], copy: Path | None, warehouse: Warehouse) -> None:
        self._kept = KeptConnection(connect)
        self._copy = copy
        self._warehouse = warehouse
        # The id of the warehouse that the keys were read from.
        self._read_from = ""
        self._refreshing = threading.Lock()
        self._sources: dict[str, tuple[int, str]] = {}
        self._found: dict[str, tuple[int, str]] = {}
        self._used: set[int] = set()
        self._told = time.monotonic()
        self.asked = float("-inf")
        self.current = False

    @property
    def warehouse_id(self) -> str:
        """The id of the warehouse; empty while it is unknown."""
        return self._warehouse.id

    def find(self, key: str) -> str | None:
        """Return the schema of a key's source; None if the key is unknown."""
        if self._read_from != self._warehouse.id:
            return None
        found = self._found.get(key)
        if found is None:
            found = self._sources.get(key_digest(key).hex())
            if found is None:
                return None
            if len(self._found) >= _REMEMBERED:
                self._found = {}
            self._found[key] = found
        self._used.add(found[0])
        return found[1]

    def refresh(self) -> None:
        """Read the keys, and report used keys and returned calls; if the read fails, the known keys stay in use."""
        with self._refreshing:
            try:
                with self._kept.use(_ANSWER_SECONDS) as connection:
                    read_from = self._warehouse.identify(connection)
                    sources = read_active_keys(connection)
                    self._tell(connection)
                    for source, number in metrics.take_returned().items():
                        record_returned(connection, source, number)
            except (psycopg.Error, LoaderError, OSError):
                self.current = False
                if not self._sources:
                    self._recall()
                return
            finally:
                self.asked = time.monotonic()
            if (sources, read_from) != (self._sources, self._read_from):
                self._sources = sources
                self._found = {}
                self._read_from = read_from
                self._remember()
            self.current = True

    def close(self) -> None:
        """Close the connection; a query under way fails."""
        self._kept.cut()
        with self._refreshing:
            self._kept.close()

    def _tell(self, connection: psycopg.Connection) -> None:
        if self._used and time.monotonic() - self._told >= _USED_SECONDS:
            used, self._used = self._used, set()
            record_use(connection, used)
            self._told = time.monotonic()

    def _remember(self) -> None:
        if self._copy is None:
            return
        unfinished = self._copy.with_suffix(f".{os.getpid()}")
        try:
            self._copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            unfinished.write_text(json.dumps({"warehouse": self._read_from, "keys": self._sources}))
            unfinished.chmod(0o600)
            unfinished.replace(self._copy)
        except OSError as error:
            log.warning("the write keys could not be saved for a start without the database", reason=str(error))

    def _recall(self) -> None:
        if self._copy is None:
            return
        with suppress(OSError, ValueError):
            copy = json.loads(self._copy.read_text())
            # Earlier versions wrote the keys without the id of the warehouse.
            read_from, keys = (copy["warehouse"], copy["keys"]) if "keys" in copy else ("", copy)
            if self._warehouse.id not in {"", read_from}:
                return
            self._warehouse.id = self._read_from = read_from
            self._sources = {digest: (number, schema) for digest, (number, schema) in keys.items()}
            log.warning("the database is away; the collector uses the write keys it read last", keys=len(self._sources))
