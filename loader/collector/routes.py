"""Defines the routes that take events: size limits, how to find write keys, and how to parse bodies.

The fast path and the ASGI application use the same routes, so a body means the same on both. No function here waits for
input or output.
"""

from collections.abc import Callable
from functools import partial

import msgspec

from loader.collector.auth import basic_key, client_address, shown_keys, trusted_networks
from loader.collector.http import HttpError, Scope, header
from loader.events.formats import ITERABLE_WEBHOOK, SEGMENT_WEBHOOK, TRACKING, call_entrance, parse_message
from loader.events.model import Event, Refused
from loader.events.segment_signature import is_signed
from loader.events.tracking_api import (
    BATCHES,
    CALLS,
    Call,
    Limits,
    parse_calls,
    read_batch,
    read_call,
    read_whole_call,
    with_address,
)
from loader.events.via import has_via, may_have_via
from loader.settings import Settings

# The tracking API also serves browsers, on pages of any origin.
ANY_ORIGIN = ((b"access-control-allow-origin", b"*"),)


class Part(msgspec.Struct, frozen=True, gc=False):
    """The messages of one request that belong to one write key.

    Attributes:
        key: The write key that the body gives; empty where the head of the request gives the key.
        returned: Number of calls that this warehouse has forwarded and that have come back; they do not land.
    """

    key: str
    events: list[Event]
    refused: list[Refused]
    returned: int = 0


class Route(msgspec.Struct, frozen=True):
    """A route that takes events.

    Attributes:
        name: The path under which the metrics count its requests.
        limit: Bytes that a body may have, decompressed.
        entrance: The entrance of its messages, for the quarantine.
        body_entrance: The entrance of a body that cannot be read as a whole.
        find_keys: Returns all values in a request's head that may be its write key, the likeliest first.
        parse: Parses a decompressed body. The last argument is the write key of the head, or empty. The function raises
            `RefusedError` if the body cannot be read, and `HttpError` if its signature is wrong.
        is_batch: Whether a request has many calls. Such a request succeeds although some of its calls are refused.
        has_key_in_body: Whether the body may have a write key if the head has none.
        headers: Headers of every response.
    """

    name: str
    limit: int
    entrance: str
    body_entrance: str
    find_keys: Callable[[Scope], tuple[str, ...]]
    parse: Callable[[Scope, bytes, str], list[Part]]
    is_batch: bool = False
    has_key_in_body: bool = False
    headers: tuple[tuple[bytes, bytes], ...] = ()


def event_routes(settings: Settings, warehouse_id: Callable[[], str] = str) -> dict[str, Route]:
    """Return the routes that take events, by path, with and without a final slash.

    Args:
        settings: The process's settings.
        warehouse_id: Returns the id of this warehouse, which its forwarded calls have; empty while it is unknown.

    Raises:
        UsageError: A setting cannot be read.
    """
    parser = _Parser(settings, warehouse_id)
    routes: dict[str, Route] = {}
    for path, entrance, secret in (
        ("/webhooks/iterable", ITERABLE_WEBHOOK, ""),
        ("/webhooks/segment", SEGMENT_WEBHOOK, settings.segment_secret.get_secret_value()),
    ):
        parse: Callable[[Scope, bytes, str], list[Part]] = partial(parser.webhook, entrance, secret)
        find_keys = partial(shown_keys, custom_header=settings.webhook_header.lower().encode())
        routes[path] = Route(path, settings.webhook_bytes, entrance, entrance, find_keys, parse)
    calls = Route(
        "/v1/batch",
        settings.batch_bytes,
        TRACKING,
        TRACKING,
        _basic_keys,
        parser.batch,
        is_batch=True,
        has_key_in_body=True,
        headers=ANY_ORIGIN,
    )
    routes |= {f"/v1/{name}": calls for name in BATCHES}
    for short, kind in CALLS.items():
        routes[f"/v1/{short}"] = routes[f"/v1/{kind}"] = msgspec.structs.replace(
            calls,
            name=f"/v1/{kind}",
            body_entrance=call_entrance(kind),
            parse=partial(parser.call, kind),
            is_batch=False,
        )
    return routes | {f"{path}/": route for path, route in routes.items()}


def _basic_keys(scope: Scope) -> tuple[str, ...]:
    key = basic_key(scope)
    return (key,) if key else ()


class _Parser:
    """Parses the bodies of all routes."""

    def __init__(self, settings: Settings, warehouse_id: Callable[[], str]) -> None:
        self._own_id = warehouse_id
        self._limits = Limits(settings.event_bytes, settings.batch_bytes, settings.batch_items)
        self._trusted = trusted_networks(settings.trusted_proxies)
        self._warehouse_id = settings.segment_warehouse_id

    def call(self, kind: str, scope: Scope, body: bytes, key: str) -> list[Part]:
        if key and not _has_origin(scope) and (whole := read_whole_call(body, kind, self._limits)):
            return [self._without_returned(body, Part("", [whole], []))]
        calls = self._with_addresses(scope, [read_call(body, kind, self._limits)])
        return [self._without_returned(body, Part(calls[0].write_key, *parse_calls(calls, 1, self._warehouse_id)))]

    def batch(self, scope: Scope, body: bytes, key: str) -> list[Part]:
        own_key, calls = read_batch(body, self._limits)
        by_key: dict[str, list[Call]] = {}
        for call in self._with_addresses(scope, calls):
            by_key.setdefault(key or own_key or call.write_key, []).append(call)
        parts = [Part(each, *parse_calls(theirs, 1, self._warehouse_id)) for each, theirs in by_key.items()]
        return [self._without_returned(body, part) for part in parts]

    def webhook(self, entrance: str, secret: str, scope: Scope, body: bytes, _: str) -> list[Part]:
        if secret and not is_signed(body, header(scope, b"x-signature"), secret):
            raise HttpError(
                401, "bad_signature", "X-Signature is not the signature of the body with LOADER_SEGMENT_SECRET."
            )
        messages = parse_message(entrance, body, 1, self._warehouse_id)
        events = [message for message in messages if type(message) is Event]
        refused = [message for message in messages if type(message) is Refused]
        return [self._without_returned(body, Part("", events, refused))]

    def _without_returned(self, body: bytes, part: Part) -> Part:
        """Leave out the calls that this warehouse has forwarded, so that a ring of warehouses ends."""
        if not may_have_via(body) or not (own_id := self._own_id()):
            return part
        events = [event for event in part.events if not has_via(event.payload, own_id)]
        return Part(part.key, events, part.refused, len(part.events) - len(events))

    def _with_addresses(self, scope: Scope, calls: list[Call]) -> list[Call]:
        """Add the client's address to the same calls to which Segment adds the address."""
        is_client_side = _has_origin(scope)
        if not is_client_side and not any(b'"direct"' in call.line for call in calls):
            return calls
        address = client_address(scope, self._trusted)
        return [with_address(call, address, client_side=is_client_side) for call in calls] if address else calls


def _has_origin(scope: Scope) -> bool:
    return b"origin" in dict(scope["headers"])
