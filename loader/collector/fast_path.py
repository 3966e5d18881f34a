"""The fast path: answers small requests with a known write key without a task and without ASGI messages.

The event loop parses such a request when its last byte has arrived, and answers from the callback of the commit. The
ASGI application takes all other requests: large requests, and requests that need a query or an error.
"""

from collections.abc import Callable, Mapping

from loader.buffer.batch_writer import BatchWriter
from loader.collector.http import SUCCESS, Response, Scope, decode_body, unavailable
from loader.collector.routes import Route
from loader.collector.write_keys import WriteKeys
from loader.errors import UnavailableError
from loader.runtime import metrics

# Largest body of the fast path, in bytes.
_BYTES = 60_000
_LENGTH_DIGITS = 20

# Headers of requests that the fast path leaves to the application. With `transfer-encoding` or `upgrade`, the head does
# not tell where the request ends. With `expect`, the client waits before it sends the body.
_UNUSUAL_HEADERS = frozenset({b"expect", b"transfer-encoding", b"upgrade"})


class FastPath:
    """The fast path of all routes; call its methods from the thread of the event loop."""

    def __init__(self, writer: BatchWriter, keys: WriteKeys, routes: Mapping[str, Route]) -> None:
        self._writer = writer
        self._keys = keys
        self._routes = routes

    def find(self, scope: Scope) -> Route | None:
        """Return the route of a request that the fast path may take, by the head of the request; None for others."""
        route = self._routes.get(scope["path"])
        if route is None or scope["method"] != "POST":
            return None
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        # A number with thousands of leading zeros is valid HTTP, but `int` refuses such a number.
        if not 0 < len(length) < _LENGTH_DIGITS or not _UNUSUAL_HEADERS.isdisjoint(headers):
            return None
        return route if int(length) <= _BYTES else None

    def take(self, route: Route, scope: Scope, body: bytes, respond: Callable[[Response], None]) -> bool:
        """Submit the events of a request, if its key is known and its body has an event.

        Args:
            route: The request's route.
            scope: The request.
            body: The received body.
            respond: Called with the response, now or later, if the request was taken.

        Returns:
            Whether the request was taken; if not, the call had no effect.
        """
        keys = route.find_keys(scope)
        source = None
        for key in keys:
            if source := self._keys.find(key):
                break
        if source is None and (keys or not route.has_key_in_body):
            return False
        try:
            parts = route.parse(scope, decode_body(scope, body, route.limit), keys[0] if keys else "")
        except Exception:  # noqa: BLE001 - the same error occurs in the application, which answers the request
            return False
        if len(parts) != 1 or not parts[0].events or parts[0].returned:
            return False
        [part] = parts
        source = source or self._keys.find(part.key)
        if source is None:
            return False

        def done(error: UnavailableError | None) -> None:
            response = SUCCESS if error is None else unavailable(str(error)).response
            metrics.count_request(route.name, response.status)
            respond(response)

        try:
            self._writer.submit(self._writer.delivery(source, route.entrance, part.events, part.refused), done)
        except UnavailableError:
            return False
        metrics.fast_requests += 1
        return True
