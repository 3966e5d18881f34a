"""The collector: what each route takes, and what it answers.

Nothing is answered with success before it is durable. What cannot be an event goes to quarantine, whatever the sender
is told: a client that gets a 400 gives up, and what it sent would be gone.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import structlog

from loader.buffer.batch_writer import BatchWriter
from loader.collector.auth import basic_key, client_address, is_signed, shown_keys, trusted_networks
from loader.collector.fast_path import FastPath
from loader.collector.http import (
    SUCCESS,
    DisconnectedError,
    HttpError,
    Receive,
    Response,
    Scope,
    Send,
    header,
    read_body,
    send_response,
    unavailable,
)
from loader.collector.warehouse_metrics import WarehouseMetrics
from loader.collector.write_keys import ASK_AGAIN_SECONDS, REFRESH_SECONDS, WriteKeys
from loader.errors import UnavailableError
from loader.events.formats import ITERABLE_WEBHOOK, SEGMENT_WEBHOOK, TRACKING, call_entrance, parse_message
from loader.events.model import Event, Reason, Refused
from loader.events.tracking_api import (
    BATCHES,
    CALLS,
    BadRequestError,
    Call,
    Limits,
    parse_calls,
    read_batch,
    read_call,
    with_address,
)
from loader.events.written_keys import blank_write_keys, find_write_key
from loader.runtime import metrics
from loader.settings import Settings

_ANY_ORIGIN = ((b"access-control-allow-origin", b"*"),)
_PREFLIGHT = (
    (b"access-control-allow-methods", b"POST, OPTIONS"),
    (b"access-control-allow-headers", b"authorization, content-type, content-encoding"),
    (b"access-control-max-age", b"86400"),
)

# Segment, too, answers 400 to what it cannot read.
_ALWAYS_TOLD = frozenset(
    {
        Reason.INVALID_JSON,
        Reason.INVALID_UTF8,
        Reason.TRUNCATED_LINE,
        Reason.NOT_OBJECT,
        Reason.TOO_DEEP,
        Reason.EVENT_TOO_LARGE,
    }
)

# Between two lines of the log about refusals.
REPORT_SECONDS = 5.0

_OPENAPI = Path(__file__).with_name("openapi.json")

_Handler = Callable[[Scope, Receive], Awaitable[Response]]

log = structlog.get_logger("loader")


class Collector:
    """An ASGI application.

    Args:
        settings: The process's settings.
        writer: Makes messages durable.
        keys: Knows who may send.
        observation: Looks at the database for the metrics.
    """

    def __init__(self, settings: Settings, writer: BatchWriter, keys: WriteKeys, observation: WarehouseMetrics) -> None:
        self._settings = settings
        self.request_seconds = settings.request_seconds
        self._writer = writer
        self._keys = keys
        self._observation = observation
        self._limits = Limits(settings.event_bytes, settings.batch_bytes, settings.batch_items)
        self._trusted = trusted_networks(settings.trusted_proxies)
        self.fast_path = FastPath(writer, keys, self._limits)
        self._asking: asyncio.Task[None] | None = None
        self._posts: dict[str, tuple[str, _Handler]] = {}
        for short, kind in CALLS.items():
            self._posts[f"/v1/{short}"] = self._posts[f"/v1/{kind}"] = (f"/v1/{kind}", self._call(kind))
        for name in BATCHES:
            self._posts[f"/v1/{name}"] = ("/v1/batch", self._batch)
        self._posts["/v1/m"] = ("/v1/m", self._ignore)
        self._posts["/webhooks/iterable"] = ("/webhooks/iterable", self._iterable)
        self._posts["/webhooks/segment"] = ("/webhooks/segment", self._segment)
        self._posts |= {f"{path}/": route for path, route in self._posts.items()}
        self._documents = {
            "/health": self._health,
            "/ready": self._ready,
            "/metrics": self._metrics,
            "/openapi.json": self._openapi,
        }
        self.routes = dict.fromkeys(self._posts, ("POST", "OPTIONS")) | dict.fromkeys(self._documents, ("GET", "HEAD"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI has it."""
        if scope["type"] != "http":
            raise RuntimeError(f"unexpected {scope['type']}")
        path = scope["path"]
        method = scope["method"]
        route = self._posts.get(path)
        name = route[0] if route else path if path in self._documents else "other"
        try:
            if route and method == "POST":
                answer = await route[1](scope, receive)
            else:
                answer = await self._other(path, method)
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
            answer = HttpError(500, "internal_error", "The collector has failed; its log says how. Try again.").response
        metrics.count_request(name, answer.status)
        # The tracking API is also for browsers, on pages of any origin.
        await send_response(send, answer, _ANY_ORIGIN if path.startswith("/v1/") else ())

    async def _other(self, path: str, method: str) -> Response:
        if path in self._posts and method == "OPTIONS":
            return Response(200, b"", _PREFLIGHT)
        if path in self._documents and method in {"GET", "HEAD"}:
            return await self._documents[path]()
        if methods := self.routes.get(path):
            allow = ((b"allow", ", ".join(methods).encode()),)
            raise HttpError(405, "method_not_allowed", f"{path} takes {methods[0]}.", allow)
        raise HttpError(404, "not_found", f"There is no {path} here; /openapi.json lists what there is.")

    # Routes

    def _call(self, kind: str) -> _Handler:
        async def handle(scope: Scope, receive: Receive) -> Response:
            body = await self._read(scope, receive, self._limits.batch_bytes)
            key = basic_key(scope)
            try:
                call = read_call(body, kind, self._limits)
            except BadRequestError as error:
                raise await self._keep_unreadable(body, error, key, call_entrance(kind)) from None
            source = await self._source(key or call.write_key)
            if source is None:
                return SUCCESS
            return await self._take(source, TRACKING, *parse_calls(self._with_addresses(scope, [call]), 1))

        return handle

    async def _batch(self, scope: Scope, receive: Receive) -> Response:
        body = await self._read(scope, receive, self._limits.batch_bytes)
        key = basic_key(scope)
        try:
            own_key, calls = read_batch(body, self._limits)
        except BadRequestError as error:
            raise await self._keep_unreadable(body, error, key, TRACKING) from None
        calls = self._with_addresses(scope, calls)
        key = key or own_key
        by_key: dict[str, list[Call]] = {}
        for call in calls:
            by_key.setdefault(key or call.write_key, []).append(call)
        deliveries = []
        unknown: HttpError | None = None
        for each, theirs in by_key.items():
            try:
                source = await self._source(each)
            except HttpError as error:
                unknown = error
                continue
            if source is not None:
                deliveries.append(self._store(source, TRACKING, *parse_calls(theirs, 1)))
        await asyncio.gather(*deliveries)
        # Those whose key is known are safe all the same.
        if unknown:
            raise unknown
        return SUCCESS

    async def _iterable(self, scope: Scope, receive: Receive) -> Response:
        source = await self._webhook_source(scope)
        body = await self._read(scope, receive, self._settings.webhook_bytes)
        if source is None:
            return SUCCESS
        return await self._take(source, ITERABLE_WEBHOOK, *_sorted_out(parse_message(ITERABLE_WEBHOOK, body, 1)))

    async def _segment(self, scope: Scope, receive: Receive) -> Response:
        source = await self._webhook_source(scope)
        body = await self._read(scope, receive, self._settings.webhook_bytes)
        secret = self._settings.segment_secret.get_secret_value()
        if secret and not is_signed(body, header(scope, b"x-signature"), secret):
            raise HttpError(401, "bad_signature", "X-Signature is not that of the body under LOADER_SEGMENT_SECRET.")
        if source is None:
            return SUCCESS
        return await self._take(source, SEGMENT_WEBHOOK, *_sorted_out(parse_message(SEGMENT_WEBHOOK, body, 1)))

    async def _ignore(self, scope: Scope, receive: Receive) -> Response:
        """Take what analytics.js says of itself, which is nobody's event."""
        await self._read(scope, receive, self._limits.batch_bytes)
        return SUCCESS

    async def _health(self) -> Response:
        return Response(200, b'{"status":"ok"}')

    async def _ready(self) -> Response:
        """Try to make something durable, on the way events go."""
        await self._writer.write(self._writer.delivery("", "", [], []))
        into = "spool" if self._writer.spooling else "database"
        return Response(200, msgspec.json.encode({"status": "ready", "writing_to": into}))

    async def _metrics(self) -> Response:
        await asyncio.to_thread(self._observation.refresh)
        return Response(200, metrics.render(), content_type=metrics.CONTENT_TYPE.encode())

    async def _openapi(self) -> Response:
        return Response(200, _OPENAPI.read_bytes())

    # Steps

    async def _read(self, scope: Scope, receive: Receive, limit: int) -> bytes:
        return await read_body(scope, receive, limit)

    def _with_addresses(self, scope: Scope, calls: list[Call]) -> list[Call]:
        client_side = any(name == b"origin" for name, _ in scope["headers"])
        if not client_side and not any(b'"direct"' in call.line for call in calls):
            return calls
        address = client_address(scope, self._trusted)
        return [with_address(call, address, client_side=client_side) for call in calls] if address else calls

    async def _take(self, source: str, entrance: str, events: list[Event], refused: list[Refused]) -> Response:
        """Store what one request has brought, and say what is wrong when none of it is an event."""
        if not events and not refused:
            raise HttpError(400, "bad_request", "The body holds no event.")
        await self._store(source, entrance, events, refused)
        if not events and not (self._settings.segment_answers and refused[0].reason not in _ALWAYS_TOLD):
            raise HttpError(400, refused[0].reason, refused[0].detail)
        return SUCCESS

    async def _store(self, source: str, entrance: str, events: list[Event], refused: list[Refused]) -> None:
        await self._writer.write(self._writer.delivery(source, entrance, events, refused))

    async def _keep_unreadable(self, body: bytes, error: BadRequestError, key: str, entrance: str) -> HttpError:
        """Put a body nobody can read in quarantine, when it is known whose it is."""
        key = key or find_write_key(body)
        source = await self._source(key) if key else None
        if source is not None and body.strip():
            # The key may be written in a way that is no JSON at all.
            kept = blank_write_keys(body).replace(key.encode(), b"")
            await self._store(source, entrance, [], [Refused(kept, 1, error.code, error.message)])
        return HttpError(400, error.code, error.message)

    async def _source(self, key: str) -> str | None:
        """Return the source of a write key; None when its events are to be dropped without a word.

        Raises:
            HttpError: The key is not known.
        """
        if key:
            source = self._keys.find(key)
            if source is None:
                await self._ask()
                source = self._keys.find(key)
            if source is not None:
                return source
            if not self._keys.current:
                raise unavailable("The database is away, and the write key is not among those known last.")
        metrics.refusals.add(unknown_keys=1)
        if self._settings.segment_answers and key:
            metrics.dropped.inc()
            return None
        raise HttpError(
            401,
            "invalid_write_key",
            "An invalid write key was provided. `loader key add` makes one; with several sources, name the source.",
        )

    async def _webhook_source(self, scope: Scope) -> str | None:
        shown = list(shown_keys(scope, self._settings.webhook_header))
        for key in shown:
            if source := self._keys.find(key):
                return source
        return await self._source(shown[0] if len(shown) == 1 else await self._first_known(shown))

    async def _first_known(self, shown: list[str]) -> str:
        if shown:
            await self._ask()
        return next((key for key in shown if self._keys.find(key)), shown[0] if shown else "")

    async def _ask(self) -> None:
        """Read the write keys again: once for everybody who waits, and no more often than once a second."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_later())
        await asyncio.shield(self._asking)

    async def _ask_later(self) -> None:
        await asyncio.sleep(max(0.0, self._keys.asked + ASK_AGAIN_SECONDS - time.monotonic()))
        self._asking = None
        await asyncio.to_thread(self._keys.refresh)

    async def report_refusals(self) -> None:
        """Log every few seconds what was refused, for as long as the collector runs."""
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            self.log_refusals()

    def log_refusals(self) -> None:
        """Log what was refused since the last time."""
        for line in metrics.refusals.take():
            log.warning(line)

    async def keep_keys_fresh(self) -> None:
        """Read the write keys every few seconds, for as long as the collector runs."""
        while True:
            await asyncio.to_thread(self._keys.refresh)
            await asyncio.sleep(REFRESH_SECONDS)


def _sorted_out(messages: list[Event | Refused]) -> tuple[list[Event], list[Refused]]:
    return (
        [message for message in messages if isinstance(message, Event)],
        [message for message in messages if isinstance(message, Refused)],
    )
