"""The write keys a collector knows, so that a request costs no query.

They are read again every few seconds, and at once when somebody comes with one that is not known. A copy of them, which
like the database holds digests only, lies beside the spool: a collector that starts while the database is away
goes on taking events.

The keys of one warehouse let nobody into another. The copy says whose keys it has, and so does each segment of the
spool that fills while those are the keys in use.
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
from loader.postgres.connection import cut, time_limit
from loader.postgres.statements import read_statement
from loader.postgres.warehouse import Warehouse
from loader.raw.sources import key_digest

# How old what is known may become while the database is there.
REFRESH_SECONDS = 5.0

# Somebody who guesses keys does not make us ask for each.
ASK_AGAIN_SECONDS = 1.0

# How exact the last use of a key is.
_USED_SECONDS = 60.0

_ANSWER_SECONDS = 10.0

_REMEMBERED = 10_000

_KEYS = read_statement(__file__, "known")
_USED = """
    update raw.write_keys set last_used_at = now()
    where id = any(%s) and (last_used_at is null or last_used_at < now() - interval '1 second')
"""

log = structlog.get_logger("loader")


class WriteKeys:
    """The write keys in use; every method may be called from any thread.

    Args:
        connect: Opens a connection to the database, in autocommit.
        copy: The file that remembers them; None for none.
        warehouse: The warehouse whose keys they are; read again with them.

    Attributes:
        asked: When the database was asked last, as `time.monotonic()` has it.
        current: Whether it answered.
    """

    def __init__(self, connect: Callable[[], psycopg.Connection], copy: Path | None, warehouse: Warehouse) -> None:
        self._connect = connect
        self._copy = copy
        self._warehouse = warehouse
        # The id of the warehouse that the keys were read from.
        self._read_from = ""
        self._connection: psycopg.Connection | None = None
        self._refreshing = threading.Lock()
        self._sources: dict[str, tuple[int, str]] = {}
        self._found: dict[str, tuple[int, str]] = {}
        self._used: set[int] = set()
        self._told = time.monotonic()
        self.asked = float("-inf")
        self.current = False

    def find(self, key: str) -> str | None:
        """Return the schema of the source a key belongs to; None when it is not known."""
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
        """Read the keys, and tell the database which have been used; what cannot be read stays as it was."""
        with self._refreshing:
            try:
                if self._connection is None or self._connection.closed:
                    self._connection = self._connect()
                with time_limit(self._connection, _ANSWER_SECONDS):
                    read_from = self._warehouse.identify(self._connection)
                    rows = self._connection.execute(_KEYS).fetchall()
                    self._tell(self._connection)
            except (psycopg.Error, LoaderError, OSError):
                self.current = False
                self._disconnect()
                if not self._sources:
                    self._recall()
                return
            finally:
                self.asked = time.monotonic()
            sources = {digest: (number, schema) for number, digest, schema in rows}
            if (sources, read_from) != (self._sources, self._read_from):
                self._sources = sources
                self._found = {}
                self._read_from = read_from
                self._remember()
            self.current = True

    def close(self) -> None:
        """Close the connection; a question that is under way gets no answer."""
        if connection := self._connection:
            cut(connection)
        with self._refreshing:
            self._disconnect()

    def _disconnect(self) -> None:
        if self._connection:
            with suppress(psycopg.Error):
                self._connection.close()
            self._connection = None

    def _tell(self, connection: psycopg.Connection) -> None:
        if self._used and time.monotonic() - self._told >= _USED_SECONDS:
            used, self._used = self._used, set()
            connection.execute(_USED, (sorted(used),))
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
            log.warning("the write keys cannot be remembered for a start without the database", reason=str(error))

    def _recall(self) -> None:
        if self._copy is None:
            return
        with suppress(OSError, ValueError):
            copy = json.loads(self._copy.read_text())
            # Versions before wrote the keys alone.
            read_from, keys = (copy["warehouse"], copy["keys"]) if "keys" in copy else ("", copy)
            if self._warehouse.id not in {"", read_from}:
                return
            self._warehouse.id = self._read_from = read_from
            self._sources = {digest: (number, schema) for digest, (number, schema) in keys.items()}
            log.warning("the database is away; write keys are those known last", keys=len(self._sources))
