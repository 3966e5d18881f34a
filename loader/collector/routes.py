"""Defines the routes that take events: size limits, how to find write keys, and how to parse bodies.

The fast path and the ASGI application use the same routes, so a body means the same on both. No function here waits for
input or output.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import msgspec

from loader.collector.auth import basic_key, client_address, is_signed, shown_keys, trusted_networks
from loader.collector.http import HttpError, Scope, header
from loader.events.formats import ITERABLE_WEBHOOK, SEGMENT_WEBHOOK, TRACKING, call_entrance, parse_message
from loader.events.model import Event, Refused
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
from loader.settings import Settings

# The tracking API also serves browsers, on pages of any origin.
ANY_ORIGIN = ((b"access-control-allow-origin", b"*"),)


class Part(msgspec.Struct, frozen=True, gc=False):
    """The messages of one request that belong to one write key.

    Attributes:
        key: The write key that the body gives; empty where the head of the request gives the key.
        events: Messages that become events.
        refused: Messages that go to quarantine.
    """

    key: str
    events: list[Event]
    refused: list[Refused]


@dataclass(frozen=True)
class Route:
    """A route that takes events.

    Attributes:
        name: The path under which the metrics count its requests.
        limit: Bytes that a body may have, decompressed.
        entrance: The entrance of its messages, for the quarantine.
        body_entrance: The entrance of a body that cannot be read as a whole.
        is_batch: Whether a request has many calls. Such a request succeeds although some of its calls are refused.
        has_key_in_body: Whether the body may have a write key if the head has none.
        find_keys: Returns all values in a request's head that may be its write key, the likeliest first.
        parse: Parses a decompressed body. The last argument is the write key of the head, or empty. The function raises
            `RefusedError` if the body cannot be read, and `HttpError` if its signature is wrong.
        headers: Headers of every response.
    """

    name: str
    limit: int
    entrance: str
    body_entrance: str
    is_batch: bool
    has_key_in_body: bool
    find_keys: Callable[[Scope], tuple[str, ...]]
    parse: Callable[[Scope, bytes, str], list[Part]]
    headers: tuple[tuple[bytes, bytes], ...] = ()


def event_routes(settings: Settings) -> dict[str, Route]:
    """Return the routes that take events, by path, with and without a final slash.

    Args:
        settings: The process's settings.

    Raises:
        UsageError: A setting cannot be read.
    """
    limits = Limits(settings.event_bytes, settings.batch_bytes, settings.batch_items)
    addresses = partial(client_address, trusted=trusted_networks(settings.trusted_proxies))
    warehouse_id = settings.segment_warehouse_id
    routes: dict[str, Route] = {}

    def tracking(name: str, parse: Callable[[Scope, bytes, str], list[Part]], body_entrance: str) -> Route:
        return Route(
            name=name,
            limit=limits.batch_bytes,
            entrance=TRACKING,
            body_entrance=body_entrance,
            is_batch=body_entrance == TRACKING,
            has_key_in_body=True,
            find_keys=_basic_keys,
            parse=parse,
            headers=ANY_ORIGIN,
        )

    for short, kind in CALLS.items():
        parse = partial(_parse_call, kind=kind, limits=limits, addresses=addresses, warehouse_id=warehouse_id)
        routes[f"/v1/{short}"] = routes[f"/v1/{kind}"] = tracking(f"/v1/{kind}", parse, call_entrance(kind))
    batch = tracking(
        "/v1/batch", partial(_parse_batch, limits=limits, addresses=addresses, warehouse_id=warehouse_id), TRACKING
    )
    routes |= {f"/v1/{name}": batch for name in BATCHES}
    secret = settings.segment_secret.get_secret_value()
    for path, entrance, signed_by in (
        ("/webhooks/iterable", ITERABLE_WEBHOOK, ""),
        ("/webhooks/segment", SEGMENT_WEBHOOK, secret),
    ):
        routes[path] = Route(
            name=path,
            limit=settings.webhook_bytes,
            entrance=entrance,
            body_entrance=entrance,
            is_batch=False,
            has_key_in_body=False,
            find_keys=partial(shown_keys, custom_header=settings.webhook_header),
            parse=partial(_parse_webhook, entrance=entrance, secret=signed_by, warehouse_id=warehouse_id),
        )
    return routes | {f"{path}/": route for path, route in routes.items()}


def _basic_keys(scope: Scope) -> tuple[str, ...]:
    key = basic_key(scope)
    return (key,) if key else ()


def _parse_call(
    scope: Scope,
    body: bytes,
    key: str,
    *,
    kind: str,
    limits: Limits,
    addresses: Callable[[Scope], str],
    warehouse_id: str,
) -> list[Part]:
    is_client_side = _has_origin(scope)
    if not is_client_side and key and (whole := read_whole_call(body, kind, limits)):
        return [Part("", [whole], [])]
    call = read_call(body, kind, limits)
    [call] = _with_addresses([call], is_client_side, lambda: addresses(scope))
    return [Part(call.write_key, *parse_calls([call], 1, warehouse_id))]


def _parse_batch(
    scope: Scope, body: bytes, key: str, *, limits: Limits, addresses: Callable[[Scope], str], warehouse_id: str
) -> list[Part]:
    own_key, calls = read_batch(body, limits)
    calls = _with_addresses(calls, _has_origin(scope), lambda: addresses(scope))
    key = key or own_key
    by_key: Mapping[str, list[Call]] = {key: calls} if key else _by_key(calls)
    return [Part(each, *parse_calls(theirs, 1, warehouse_id)) for each, theirs in by_key.items()]


def _parse_webhook(
    scope: Scope,
    body: bytes,
    key: str,  # noqa: ARG001
    *,
    entrance: str,
    secret: str,
    warehouse_id: str,
) -> list[Part]:
    if secret and not is_signed(body, header(scope, b"x-signature"), secret):
        raise HttpError(
            401, "bad_signature", "X-Signature is not the signature of the body with LOADER_SEGMENT_SECRET."
        )
    messages = parse_message(entrance, body, 1, warehouse_id)
    events = [message for message in messages if type(message) is Event]
    return [Part("", events, [message for message in messages if type(message) is Refused])]


def _by_key(calls: Iterable[Call]) -> dict[str, list[Call]]:
    by_key: dict[str, list[Call]] = {}
    for call in calls:
        by_key.setdefault(call.write_key, []).append(call)
    return by_key


def _has_origin(scope: Scope) -> bool:
    return any(name == b"origin" for name, _ in scope["headers"])


def _with_addresses(calls: list[Call], is_client_side: bool, address_of: Callable[[], str]) -> list[Call]:
    """Add the client's address to the same calls to which Segment adds the address."""
    if not is_client_side and not any(b'"direct"' in call.line for call in calls):
        return calls
    address = address_of()
    return [with_address(call, address, client_side=is_client_side) for call in calls] if address else calls
