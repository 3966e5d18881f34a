"""The fast path most requests take: a small body for the tracking API with nothing odd about it.

Such a request needs no task of its own, and nobody who awaits anything: it is parsed when its last byte is there, and
answered from where its commit is noticed. Whatever is not as usual is left to the collector, which takes its time.
"""

from collections.abc import Callable

import msgspec

from loader.buffer.batch_writer import BatchWriter
from loader.collector.auth import basic_key
from loader.collector.http import SUCCESS, Response, Scope, unavailable
from loader.collector.write_keys import WriteKeys
from loader.errors import UnavailableError
from loader.events.formats import TRACKING
from loader.events.model import Event, Refused
from loader.events.tracking_api import BATCHES, CALLS, Limits, parse_calls, read_batch, read_call, read_whole_call
from loader.runtime import metrics

# A body of more is not read at once.
_BYTES = 60_000
_LENGTH_DIGITS = 20

# What such a request does not have: a body to decompress, a browser behind it, somebody who waits to send.
_ODD_HEADERS = frozenset({b"content-encoding", b"expect", b"origin", b"transfer-encoding", b"upgrade"})

# By path, the type of the call; none for a batch.
_KINDS = {f"/v1/{name}": kind for short, kind in CALLS.items() for name in (short, kind)}
_KINDS |= {f"/v1/{name}": "" for name in BATCHES}
_KINDS |= {f"{path}/": kind for path, kind in _KINDS.items()}


class Route(msgspec.Struct, frozen=True, gc=False):
    """What the head of a request says of how to take it.

    Attributes:
        route: Its path, as requests are counted.
        kind: The type of its call; empty for a batch.
        key: The write key it shows; empty when it shows none.
    """

    route: str
    kind: str
    key: str


class FastPath:
    """Takes requests; for the event loop's thread.

    Args:
        writer: Makes messages durable.
        keys: Knows who may send.
        limits: How much a request may hold.
    """

    def __init__(self, writer: BatchWriter, keys: WriteKeys, limits: Limits) -> None:
        self._writer = writer
        self._keys = keys
        self._limits = limits
        self._bytes = min(_BYTES, limits.batch_bytes)

    def find(self, scope: Scope) -> Route | None:
        """Say how a request may be taken, if it may.

        Args:
            scope: The request, of which only the head may be there.
        """
        kind = _KINDS.get(scope["path"])
        if kind is None or scope["method"] != "POST":
            return None
        length = -1
        for name, value in scope["headers"]:
            # One with thousands of zeros in front is a number, too, but not to int().
            if name == b"content-length" and len(value) < _LENGTH_DIGITS:
                length = int(value)
            elif name == b"content-length" or name in _ODD_HEADERS:
                return None
        return Route(f"/v1/{kind or 'batch'}", kind, basic_key(scope)) if 0 <= length <= self._bytes else None

    def take(self, route: Route, body: bytes, answer: Callable[[Response], None]) -> bool:
        """Take a request, if there is nothing wrong with it.

        Args:
            route: What its head says.
            body: Its body.
            answer: Called with the answer, now or later, if it was taken.

        Returns:
            Whether it was taken; otherwise nothing was done.
        """
        source = self._keys.find(route.key)
        if source is None or len(body) > self._bytes:
            return False
        try:
            events, refused = self._read(body, route.kind)
        except Exception:  # noqa: BLE001 - the long way says what it is, and tells nobody that it is no HTTP
            return False
        if not events or (refused and route.kind):
            return False

        def done(error: UnavailableError | None) -> None:
            answered = SUCCESS if error is None else unavailable(str(error)).response
            metrics.count_request(route.route, answered.status)
            answer(answered)

        try:
            self._writer.submit(self._writer.delivery(source, TRACKING, events, refused), done)
        except UnavailableError:
            return False
        return True

    def _read(self, body: bytes, kind: str) -> tuple[list[Event], list[Refused]]:
        if whole := read_whole_call(body, kind, self._limits):
            return [whole], []
        if b'"direct"' in body:
            # It may ask for the client's address.
            return [], []
        calls = [read_call(body, kind, self._limits)] if kind else read_batch(body, self._limits)[1]
        return parse_calls(calls, 1)
