"""The collector's ASGI application: reads requests, stores their messages and answers.

A request is answered with success only after its messages are durable. A message that cannot become an event goes to
quarantine, also when the answer is an error: a client gives up after a 400, so the message would otherwise be lost.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

from loader.buffer.batch_writer import BatchWriter
from loader.collector.fast_path import FastPath
from loader.collector.http import (
    SUCCESS,
    DisconnectedError,
    HttpError,
    Receive,
    Response,
    Scope,
    Send,
    read_body,
    send_response,
    unavailable,
)
from loader.collector.routes import ANY_ORIGIN, Part, Route, event_routes
from loader.collector.warehouse_metrics import WarehouseMetrics
from loader.collector.write_keys import ASK_AGAIN_SECONDS, REFRESH_SECONDS, WriteKeys
from loader.errors import UnavailableError
from loader.events.model import UNREADABLE, Reason, Refused, RefusedError
from loader.events.written_keys import blank_write_keys, find_write_key
from loader.runtime import metrics
from loader.settings import Settings

_PREFLIGHT = (
    (b"access-control-allow-methods", b"POST, OPTIONS"),
    (b"access-control-allow-headers", b"authorization, content-type, content-encoding"),
    (b"access-control-max-age", b"86400"),
)

# Reasons that are answered with 400 even when the collector answers as Segment does. Segment also answers 400 to a body
# that it cannot read.
_ALWAYS_TOLD = UNREADABLE | {Reason.INVALID_UTF8, Reason.EVENT_TOO_LARGE}

_DISCARDED = ("/v1/m", "/v1/m/")

# Time between two reports of refusals in the log.
REPORT_SECONDS = 5.0

_OPENAPI = Path(__file__).with_name("openapi.json")

log = structlog.get_logger("loader")


class Collector:
    """The ASGI application that serves the collector's routes."""

    def __init__(self, settings: Settings, writer: BatchWriter, keys: WriteKeys, observation: WarehouseMetrics) -> None:
        self._settings = settings
        self.request_seconds = settings.request_seconds
        self._writer = writer
        self._keys = keys
        self._observation = observation
        self._routes = event_routes(settings, lambda: keys.warehouse_id)
        self.fast_path = FastPath(writer, keys, self._routes)
        self._asking: asyncio.Task[None] | None = None
        # analytics.js sends its own metrics to /v1/m. They are not events and are discarded.
        self._posts = {path: route.name for path, route in self._routes.items()} | dict.fromkeys(_DISCARDED, "/v1/m")
        self._documents = {
            "/health": self._health,
            "/ready": self._ready,
            "/metrics": self._metrics,
            "/openapi.json": self._openapi,
        }
        self.routes = dict.fromkeys(self._posts, ("POST", "OPTIONS")) | dict.fromkeys(self._documents, ("GET", "HEAD"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI request."""
        if scope["type"] != "http":
            raise RuntimeError(f"unexpected {scope['type']}")
        path = scope["path"]
        method = scope["method"]
        route = self._routes.get(path)
        name = self._posts.get(path) or (path if path in self._documents else "other")
        try:
            if route and method == "POST":
                answer = await self._take(route, scope, receive)
            else:
                answer = await self._other(path, method, scope, receive)
        except HttpError as error:
            answer = error.response
        except UnavailableError as error:
            answer = unavailable(str(error)).response
        except DisconnectedError:
            return
        except asyncio.CancelledError:
            answer = unavailable("The collector is stopping. Try again.").response
        except Exception:
            log.exception("a request could not be answered", route=name)
            answer = HttpError(
                500, "internal_error", "The collector has failed; its log has the reason. Try again."
            ).response
        metrics.count_request(name, answer.status)
        await send_response(send, answer, ANY_ORIGIN if path.startswith("/v1/") else ())

    async def _other(self, path: str, method: str, scope: Scope, receive: Receive) -> Response:
        if path in self._posts and method == "OPTIONS":
            return Response(200, b"", _PREFLIGHT)
        if path in self._posts and method == "POST":
            await read_body(scope, receive, self._settings.batch_bytes)
            return SUCCESS
        if path in self._documents and method in {"GET", "HEAD"}:
            return await self._documents[path]()
        if methods := self.routes.get(path):
            allow = ((b"allow", ", ".join(methods).encode()),)
            raise HttpError(405, "method_not_allowed", f"{path} takes {methods[0]}.", allow)
        raise HttpError(404, "not_found", f"There is no {path} here; /openapi.json lists the routes.")

    async def _take(self, route: Route, scope: Scope, receive: Receive) -> Response:
        """Read, parse and store the messages of one request."""
        keys = route.find_keys(scope)
        key = keys[0] if keys else ""
        source = None
        if not route.has_key_in_body:
            key = await self._first_known(keys)
            source = await self._source(key)
        body = await read_body(scope, receive, route.limit)
        try:
            parts = route.parse(scope, body, key)
        except RefusedError as error:
            raise await self._keep_unreadable(route, body, error, key) from None
        # The queue counts the bytes of the events. The body would be memory that nothing counts.
        del body
        if not route.is_batch:
            [part] = parts
            if route.has_key_in_body:
                source = await self._source(key or part.key)
            return SUCCESS if source is None else await self._store_part(route, source, part)
        deliveries = []
        unknown: HttpError | None = None
        for part in parts:
            try:
                source = await self._source(key or part.key)
            except HttpError as error:
                unknown = error
                continue
            if source is not None:
                metrics.count_returned(source, part.returned)
                deliveries.append(self._store(route, source, part))
        await asyncio.gather(*deliveries)
        # Calls with a known key are stored although the request fails.
        if unknown:
            raise unknown
        return SUCCESS

    async def _health(self) -> Response:
        return Response(200, b'{"status":"ok"}')

    async def _ready(self) -> Response:
        """Check that events can be made durable, by a delivery without messages that takes the same path."""
        await self._writer.write(self._writer.delivery("", "", [], []))
        into = "spool" if self._writer.spooling else "database"
        return Response(200, msgspec.json.encode({"status": "ready", "writing_to": into}))

    async def _metrics(self) -> Response:
        await asyncio.to_thread(self._observation.refresh)
        return Response(200, metrics.render(), content_type=metrics.CONTENT_TYPE.encode())

    async def _openapi(self) -> Response:
        return Response(200, _OPENAPI.read_bytes())

    async def _store_part(self, route: Route, source: str, part: Part) -> Response:
        """Store the messages of a request; answer with an error if none of them is an event.

        With the setting `segment_answers`, most refused messages are answered with success, as Segment answers them.
        """
        metrics.count_returned(source, part.returned)
        if part.returned and not part.refused and not part.events:
            return SUCCESS
        if not part.events and not part.refused:
            raise HttpError(400, "bad_request", "The body contains no event.")
        await self._store(route, source, part)
        if not part.events and not (self._settings.segment_answers and part.refused[0].reason not in _ALWAYS_TOLD):
            raise HttpError(400, part.refused[0].reason, part.refused[0].detail)
        return SUCCESS

    async def _store(self, route: Route, source: str, part: Part) -> None:
        await self._writer.write(self._writer.delivery(source, route.entrance, part.events, part.refused))

    async def _keep_unreadable(self, route: Route, body: bytes, error: RefusedError, key: str) -> HttpError:
        """Put an unreadable body in quarantine if its source is known; return the error for the answer."""
        key = key or find_write_key(body)
        source = await self._source(key) if key else None
        if source is not None and body.strip():
            # The key may be written in a form that is not JSON at all. So every copy of the key is removed.
            kept = blank_write_keys(body).replace(key.encode(), b"")
            refused = [Refused(kept, 1, error.reason, error.detail)]
            await self._writer.write(self._writer.delivery(source, route.body_entrance, [], refused))
        return HttpError(400, error.reason, error.detail)

    async def _source(self, key: str) -> str | None:
        """Return the source of a write key; None when its messages are to be dropped and answered with success.

        Raises:
            HttpError: The key is unknown, or the database is away and the key is not among the last known keys.
        """
        if key:
            source = self._keys.find(key)
            if source is None:
                await self._ask()
                source = self._keys.find(key)
            if source is not None:
                return source
            if not self._keys.current:
                raise unavailable(
                    "The database is away, and the collector does not know this write key. Try again in a moment."
                )
        metrics.refusals.add(unknown_keys=1)
        if self._settings.segment_answers and key:
            metrics.dropped.inc()
            return None
        raise HttpError(
            401,
            "invalid_write_key",
            "An invalid write key was provided. `loader key add` makes a key; with several sources, name the source.",
        )

    async def _first_known(self, keys: Sequence[str]) -> str:
        """Return the first key that belongs to a source, else the first key, else the empty string."""
        known = next((key for key in keys if self._keys.find(key)), None)
        if known is None and len(keys) > 1:
            await self._ask()
            known = next((key for key in keys if self._keys.find(key)), None)
        return known or (keys[0] if keys else "")

    async def _ask(self) -> None:
        """Read the write keys again; waiting requests share one read, and reads are at least a second apart."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_later())
        await asyncio.shield(self._asking)

    async def _ask_later(self) -> None:
        await asyncio.sleep(max(0.0, self._keys.asked + ASK_AGAIN_SECONDS - time.monotonic()))
        self._asking = None
        await asyncio.to_thread(self._keys.refresh)

    async def report_refusals(self) -> None:
        """Log the numbers of refusals every `REPORT_SECONDS`, as long as the collector runs."""
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            self.log_refusals()

    def log_refusals(self) -> None:
        """Log the numbers of refusals since the last report."""
        for line in metrics.refusals.take():
            log.warning(line)

    async def keep_keys_fresh(self) -> None:
        """Read the write keys every `REFRESH_SECONDS`, as long as the collector runs."""
        while True:
            await asyncio.to_thread(self._keys.refresh)
            await asyncio.sleep(REFRESH_SECONDS)
