"""Sends calls to a project of Iterable: profiles, events, purchases and carts.

Profiles and events go by the bulk endpoints only, because Iterable processes bulk and single requests apart. An answer
with 200 may name users whose items failed, so each answer is looked into, item by item.
"""

import math
import re
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import msgspec

from loader.destinations.clock import Clock
from loader.destinations.http_client import Answer, HttpClient
from loader.destinations.iterable_calls import (
    Endpoint,
    Item,
    UnmappableError,
    group_profiles,
    key_digest,
    map_call,
    merged_body,
    normalize_email,
)
from loader.destinations.model import Call, Dead, Outcome, Reply
from loader.destinations.options import ITERABLE_URLS, Options, receiver_url
from loader.destinations.replies import judge
from loader.destinations.secret_files import read_secret
from loader.destinations.shared import Shared

BATCH_ITEMS = 1_000
BATCH_BYTES = 3_900_000

# Requests a second. Iterable documents the limits of the bulk endpoints, and none for the others.
RATES = {Endpoint.USERS: 5.0, Endpoint.EVENTS: 10.0, Endpoint.PURCHASE: 20.0, Endpoint.CART: 20.0, Endpoint.EMAIL: 20.0}

# The requests for calls that landed together. A user whose calls have another order needs further requests.
_ORDER = (Endpoint.USERS, Endpoint.EVENTS, Endpoint.PURCHASE, Endpoint.CART)

# Calls without a request are committed in parts, so that a wrong mapping is seen after few of them.
_UNMAPPED = 20

# A profile may be on its way, so an event of an unknown user is tried again.
_NOT_FOUND_SECONDS = 60.0
# Failures of a user. All other failures are those of an item.
_ABOUT_USERS = frozenset({"forgotten", "notFound"})
_CULPRIT = re.compile(r"obj\.(?:users|events)\[(\d+)\]")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2} [+-]\d{2}:\d{2}", re.ASCII)
_MOST_REMEMBERED = 50_000
_REASON_CHARACTERS = 100

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class IterableReceiver:
    """A project of Iterable.

    Args:
        options: The settings of the destination.
        clock: The clock, for the pace of the requests.
        stop: Set when the process stops.
        shared: The knowledge of all deliveries to the project.
    """

    page_events = 5_000
    page_bytes = 8_000_000
    batch_calls = BATCH_ITEMS

    def __init__(self, options: Options, clock: Clock, stop: threading.Event, shared: Shared) -> None:
        self._options = options
        self._clock = clock
        self._stop = stop
        self._shared = shared
        self._client: HttpClient | None = None
        self._mapped: dict[int, Item | str | None] = {}

    def admits(self, call: Call) -> bool:
        """Return whether a call goes: the settings do not leave it out, and its user is not forgotten."""
        item = self._map(call)
        if item is None:
            return False
        return isinstance(item, str) or not any(key_digest(key) in self._shared.suppressed for key in item.keys)

    def batches(self, calls: Sequence[Call]) -> Iterable[Sequence[Call]]:
        """Divide calls into requests, in which the calls of each user keep their order.

        A call that cannot be mapped is in a batch without a request. A change of an address keeps its place.
        """
        # A page of an e-mail project is one part, because each part may wait for its new profiles.
        most = self.page_events if self._options.project == "email" else BATCH_ITEMS
        start = 0
        for place, call in enumerate(calls):
            item = self._map(call)
            changes_email = isinstance(item, Item) and item.endpoint is Endpoint.EMAIL
            if changes_email or place - start >= most:
                yield from self._chunk(calls[start:place])
                start = place
            if changes_email:
                yield [call]
                start = place + 1
        yield from self._chunk(calls[start:])

    def send(self, calls: Sequence[Call], *, window: str) -> Reply:  # noqa: ARG002 - the receiver's interface
        """Send the items of one endpoint in one request.

        Raises:
            ConfigurationError: The key cannot be read.
        """
        items = [item for call in calls if isinstance(item := self._map(call), Item)]
        unmapped = [Dead(call, None, item) for call in calls if isinstance(item := self._map(call), str)]
        if not items:
            return Reply(Outcome.TAKEN, dead=unmapped)
        [endpoint] = {item.endpoint for item in items}
        units = self._units(endpoint, items)
        key = read_secret(self._options.key)
        if not self._wait_for_turn(endpoint, items):
            return Reply(Outcome.AGAIN, reason="the process stops")
        if self._client is None:
            url = receiver_url(self._options, allow_http=False) if self._options.url else self._region_url()
            self._client = HttpClient(url, self._options.ca_file or None)
        answer = self._client.post(
            endpoint,
            msgspec.json.encode(self._body(endpoint, units)),
            {"Api-Key": key, "Content-Type": "application/json"},
        )
        reply = judge(answer, self._client.host)
        if reply.outcome is Outcome.REFUSED:
            return self._look_into_refusal(reply, answer, [unit for unit, _ in units])
        if reply.outcome is not Outcome.TAKEN:
            return reply
        if _read(answer) is None:
            # Something else than Iterable has answered, such as a proxy's page. A repeated item changes nothing.
            return Reply(Outcome.AGAIN, answer.status, f"{self._client.host} did not answer with JSON")
        reply = self._look_into_answer(reply, answer, endpoint, units)
        if endpoint is Endpoint.USERS:
            failed = {dead.call.seq for dead in reply.dead} | {call.seq for call in reply.singly}
            accepted = (item for item in items if item.call.seq not in failed)
            self._shared.profiles.note((key for item in accepted for key in item.keys), self._clock.seconds())
        return replace(reply, dead=[*unmapped, *reply.dead])

    def close(self) -> None:
        """Close the connection."""
        if self._client:
            self._client.close()

    def _region_url(self) -> str:
        return ITERABLE_URLS[self._options.region]

    def _map(self, call: Call) -> Item | str | None:
        """Return the item of a call, the reason why it cannot be mapped, or None if it is left out."""
        if call.seq in self._mapped:
            return self._mapped[call.seq]
        if len(self._mapped) >= _MOST_REMEMBERED:
            self._mapped.clear()
        try:
            item: Item | str | None = map_call(call, self._options)
        except UnmappableError as error:
            item = error.reason
        self._mapped[call.seq] = item
        return item

    def _chunk(self, calls: Sequence[Call]) -> Iterable[Sequence[Call]]:
        unmapped = [call for call in calls if isinstance(self._map(call), str)]
        yield from (unmapped[start : start + _UNMAPPED] for start in range(0, len(unmapped), _UNMAPPED))
        items = [item for call in calls if isinstance(item := self._map(call), Item)]
        for endpoint, step in _steps(items):
            if endpoint is Endpoint.USERS:
                rest = step
                while rest:
                    groups, rest = group_profiles(rest)
                    yield from _runs(sorted(chain.from_iterable(groups), key=lambda item: item.call.seq))
            elif endpoint is Endpoint.EVENTS:
                now = self._clock.seconds()
                early = {item.call.seq for item in step if self._visible_at(item) > now}
                yield from _runs([item for item in step if item.call.seq not in early])
                yield from _runs([item for item in step if item.call.seq in early])
            else:
                yield from ([item.call] for item in step)

    def _units(self, endpoint: Endpoint, items: Sequence[Item]) -> list[tuple[list[Item], dict[str, Any]]]:
        """Return the entries of the request: the items behind each entry, and the entry."""
        if endpoint is not Endpoint.USERS:
            return [([item], item.body) for item in items]
        groups, rest = group_profiles(items)
        # A batch has no rest, and neither has a part of a halved batch.
        groups += [[item] for item in rest]
        return [(group, merged_body(group, nested=self._options.merge_nested_objects)) for group in groups]

    def _body(self, endpoint: Endpoint, units: Sequence[tuple[list[Item], dict[str, Any]]]) -> dict[str, Any]:
        if endpoint is Endpoint.USERS:
            body: dict[str, Any] = {"users": [entry for _, entry in units]}
            if self._options.create_fields is not None:
                body["createNewFields"] = self._options.create_fields
            return body
        if endpoint is Endpoint.EVENTS:
            return {"events": [entry for _, entry in units]}
        return units[0][1]

    def _visible_at(self, item: Item) -> float:
        """Return the time from which Iterable takes an event of a user whose profile was sent."""
        # Other projects make the user with the event.
        return self._shared.profiles.visible_at(item.keys) if self._options.project == "email" else -math.inf

    def _wait_for_turn(self, endpoint: Endpoint, items: Sequence[Item]) -> bool:
        """Wait for the turn of a request; return whether it has come before the process stops."""
        now = self._clock.seconds()
        if endpoint is Endpoint.EVENTS:
            visible_at = max(map(self._visible_at, items))
            if visible_at > now:
                self._clock.wait(self._stop, visible_at - now)
                now = self._clock.seconds()
        turn = self._shared.pace.take_turn(endpoint, RATES[endpoint], now)
        if turn > now:
            self._clock.wait(self._stop, turn - now)
        return not self._stop.is_set()

    def _look_into_answer(
        self, reply: Reply, answer: Answer, endpoint: Endpoint, units: Sequence[tuple[list[Item], dict[str, Any]]]
    ) -> Reply:
        """Return which calls of a taken request were not accepted, by the keys and names in the answer."""
        told = _read(answer) or {}
        items = [item for group, _ in units for item in group]
        notes = sum((item.notes for item in items), Counter[str]())
        for name, note in (("filteredOutFields", "field filtered out"), ("createdFields", "field created")):
            notes.update(f"{note}: {str(field)[:100]}" for field in _list(told.get(name)))
        if endpoint not in {Endpoint.USERS, Endpoint.EVENTS}:
            return replace(reply, notes=notes)
        failures = _failures(told)
        sent = Counter(key for group, _ in units for key in group[0].keys)
        dead: list[Dead] = []
        singly: list[Call] = []
        disallowed = {str(name) for name in _list(told.get("disallowedEventNames"))}
        for group, entry in units:
            if entry.get("eventName") in disallowed:
                dead += [Dead(item.call, answer.status, "disallowed") for item in group]
                continue
            keys = {key for item in group for key in item.keys if key in failures}
            if not keys:
                continue
            key = min(keys)
            reason, number = failures[key]
            if (number < sent[key] and len(units) > 1) or (len(group) > 1 and reason not in _ABOUT_USERS):
                # Perhaps only some of the user's items have failed, and the answer does not tell them apart.
                singly += [item.call for item in group]
            else:
                dead += [_failed(item, answer.status, reason) for item in group]
        for name in sorted(disallowed):
            notes[f"event not allowed in the project: {name[:100]}"] += 1
        return replace(reply, dead=dead, singly=singly, notes=notes)

    def _look_into_refusal(self, reply: Reply, answer: Answer, groups: Sequence[list[Item]]) -> Reply:
        """Return which calls made Iterable refuse a request, if the answer tells."""
        told = _read(answer) or {}
        code = str(told.get("code", ""))[:_REASON_CHARACTERS]
        reply = replace(reply, reason=code if code and code != "Success" else f"status {answer.status}")
        params = told.get("params")
        culprits: list[Call] = []
        if isinstance(params, dict):
            places = {int(found[1]) for name in params if (found := _CULPRIT.match(name))}
            # Any of several updates that go as one item may cause the refusal. Halving finds this update.
            culprits = [groups[place][0].call for place in places if place < len(groups) and len(groups[place]) == 1]
            wrong = params.get("validationErrors")
            if isinstance(wrong, dict):
                culprits += [item.call for group in groups for item in group if _has_wrong_type(item, wrong)]
        if code == "ForgottenUserError" and len(groups) == 1:
            return replace(
                reply, outcome=Outcome.TAKEN, dead=[_failed(item, answer.status, "forgotten") for item in groups[0]]
            )
        return replace(reply, culprits=culprits)


def _steps(items: Sequence[Item]) -> Iterable[tuple[Endpoint, list[Item]]]:
    """Divide items into steps of one endpoint each, as few as keep the order of each user's items."""
    steps: dict[tuple[int, int], list[Item]] = {}
    last: dict[str, tuple[int, int]] = {}
    for item in items:
        rank = _ORDER.index(item.endpoint)
        round_, before = max(last.get(key, (0, 0)) for key in item.keys)
        step = (round_ if rank >= before else round_ + 1, rank)
        last |= dict.fromkeys(item.keys, step)
        steps.setdefault(step, []).append(item)
    for step in sorted(steps):
        yield _ORDER[step[1]], steps[step]


def _runs(items: Sequence[Item]) -> Iterable[Sequence[Call]]:
    """Divide items of one endpoint into requests by their number and their size."""
    run: list[Call] = []
    size = 0
    for item in items:
        more = len(msgspec.json.encode(item.body)) + 1
        if run and (len(run) >= BATCH_ITEMS or size + more > BATCH_BYTES):
            yield run
            run, size = [], 0
        run.append(item.call)
        size += more
    if run:
        yield run


def _failures(told: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """Return the reason and the number of the failures of each key that an answer names."""
    failed = told.get("failedUpdates")
    found: dict[str, tuple[str, int]] = {}
    for name, keys in failed.items() if isinstance(failed, dict) else ():
        if name.startswith("noOp"):
            continue
        reason = re.sub(r"(Emails|UserIds)$", "", name)[:_REASON_CHARACTERS]
        for key, number in Counter(str(key) for key in _list(keys)).items():
            found[normalize_email(key) if name.endswith("Emails") else key] = (reason, number)
    return found


def _failed(item: Item, status: int, reason: str) -> Dead:
    is_forgotten = reason == "forgotten"
    return Dead(
        item.call,
        status,
        reason,
        retry_seconds=_NOT_FOUND_SECONDS if reason == "notFound" else None,
        # A user who has gone is no wrong mapping.
        is_refusal=reason not in _ABOUT_USERS,
        suppress=tuple(key_digest(key) for key in item.keys) if is_forgotten else (),
    )


def _has_wrong_type(item: Item, wrong: dict[str, Any]) -> bool:
    """Return whether an item has a field with a value of a type that Iterable refuses."""
    for name, detail in wrong.items():
        path = name.rpartition(":::")[2].split(".")
        types = {str(each) for each in _list(detail.get("incomingTypes"))} if isinstance(detail, dict) else set()
        value: Any = item.body.get("dataFields", {})
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None and types & _types_of(value):
            return True
    return False


def _types_of(value: object) -> set[str]:
    """Return the names that Iterable has for the type of a value."""
    match value:
        case bool():
            return {"boolean"}
        case int():
            return {"long", "integer", "double", "number"}
        case float():
            return {"double", "float", "number"}
        case str():
            return {"date"} if _DATE.fullmatch(value) else {"string", "keyword", "text"}
        case list():
            return {"array", "nested"} | {name for each in value for name in _types_of(each)}
        case dict():
            return {"object", "nested"}
    return set()


def _read(answer: Answer) -> dict[str, Any] | None:
    """Return the object in an answer; None if it has none. The database holds no zero character."""
    try:
        return _decode(answer.body.replace(b"\\u0000", b"\\ufffd"))
    except (msgspec.MsgspecError, RecursionError):
        return None


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
