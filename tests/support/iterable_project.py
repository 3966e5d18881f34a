"""A project of Iterable that behaves as its API is documented, and checks each request against its limits."""

import json
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from tests.support.receivers import Received, Respond

# The project fails when it has applied the first half of the items of a request.
HALF = Respond(503, b"<html>Service Unavailable</html>")

_MANAGED = re.compile(r"itbl.*|subscribed.*|unsubscribed.*|emailListIds|userListIds|profileUpdatedAt|signup.*|devices")


class IterableProject:
    """The state of a project; `answer` is the behaviour of a receiver.

    Attributes:
        profiles: The fields of each profile, by its key.
        events: The events by their id, as they were sent last.
        purchases: The purchases by their id.
        user_ids: In an e-mail project, the address of each user id.
        tried: The number of requests that had an event, by its id.
        times: The seconds at which requests came, by path.
        disturb: Returns an answer that replaces the project's own. `LOST` applies the request first, and `HALF` the
            first half of its items.
    """

    def __init__(self, project: str = "hybrid", seconds: Callable[[], float] = lambda: 0.0) -> None:
        self.project = project
        self.profiles: dict[str, dict[str, Any]] = {}
        self.events: dict[str, dict[str, Any]] = {}
        self.purchases: dict[str, dict[str, Any]] = {}
        self.carts: list[dict[str, Any]] = []
        self.forgotten: set[str] = set()
        self.conflicts: set[str] = set()
        self.disallowed: set[str] = set()
        self.unknown: set[str] = set()
        self.user_ids: dict[str, str] = {}
        self._visible_at: dict[str, float] = {}
        self.dates: set[str] = set()
        self.tried: Counter[str] = Counter()
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.times: dict[str, list[float]] = defaultdict(list)
        self.disturb: Callable[[str, dict[str, Any]], Respond | None] = lambda _, __: None
        self._seconds = seconds

    def answer(self, request: Received) -> Respond:
        """Return the answer to a request, and change the project."""
        assert len(request.body) < 4_000_000
        assert request.headers["api-key"]
        assert "key" not in request.path.lower()
        body = request.json
        self.bodies.append((request.path, body))
        self.tried.update(event["id"] for event in body.get("events", ()))
        self.times[request.path].append(self._seconds())
        disturbed = self.disturb(request.path, body)
        if disturbed is not None and not disturbed.is_lost and disturbed is not HALF:
            return disturbed
        take = {
            "/api/users/bulkUpdate": self._update,
            "/api/events/trackBulk": self._track,
            "/api/commerce/trackPurchase": self._purchase,
            "/api/commerce/updateCart": self._cart,
            "/api/users/updateEmail": self._change_email,
        }[request.path]
        answer = take(_first_half(body) if disturbed is HALF else body)
        return disturbed or answer

    def _update(self, body: dict[str, Any]) -> Respond:
        users = body["users"]
        assert len(users) <= 1000
        keys = [user[name] for user in users for name in ("email", "userId") if name in user]
        assert len(keys) == len(set(keys)), "a user is twice in one request"
        if refusal := self._refusal("users", users):
            return refusal
        failed: dict[str, list[str]] = defaultdict(list)
        for user in users:
            assert not [name for name in user["dataFields"] if _MANAGED.fullmatch(name)]
            key = self._fails(user, failed)
            if key is None:
                continue
            # "At least 60 seconds" pass before other calls see an update.
            self._visible_at.setdefault(key, self._seconds() + 60)
            fields = self.profiles.setdefault(key, {})
            fields |= user["dataFields"]
        return self._bulk_answer(len(users), failed)

    def _track(self, body: dict[str, Any]) -> Respond:
        events = body["events"]
        assert len(events) <= 1000
        if refusal := self._refusal("events", events):
            return refusal
        failed: dict[str, list[str]] = defaultdict(list)
        disallowed = []
        for event in events:
            assert isinstance(event["createdAt"], int)
            assert event["createdAt"] < 10**11, "createdAt must be in seconds"
            assert re.fullmatch(r"[A-Za-z0-9-]{1,512}", event["id"])
            if event["eventName"] in self.disallowed:
                disallowed.append(event["eventName"])
            elif self._fails(event, failed) is not None:
                self.events[event["id"]] = event
        return self._bulk_answer(len(events), failed, disallowedEventNames=sorted(set(disallowed)))

    def _purchase(self, body: dict[str, Any]) -> Respond:
        key = body["user"].get("email") or body["user"].get("userId")
        if key in self.forgotten:
            return _refused(409, "ForgottenUserError", None)
        for item in body["items"]:
            assert isinstance(item["id"], str)
            assert isinstance(item["quantity"], int)
        self.purchases[body["id"]] = body
        return _success()

    def _cart(self, body: dict[str, Any]) -> Respond:
        self.carts.append(body)
        return _success()

    def _change_email(self, body: dict[str, Any]) -> Respond:
        self.profiles[body["newEmail"]] = self.profiles.pop(body["currentEmail"], {})
        return _success()

    def _fails(self, item: dict[str, Any], failed: dict[str, list[str]]) -> str | None:
        """Return the key of an item that is accepted; note the failure of any other item."""
        name = "email" if "email" in item and self.project != "userid" else "userId"
        given: str = item[name]
        key = self._find(item, given) if self.project == "email" else given
        suffix = "Emails" if name == "email" else "UserIds"
        for kind, keys in (("forgotten", self.forgotten), ("conflict", self.conflicts), ("notFound", self.unknown)):
            if given in keys:
                failed[kind + suffix].append(given)
                return None
        if item["dataFields"].get("refuse") == "data":
            failed["invalidData" + suffix].append(given)
            return None
        if key is None:
            failed["notFound" + suffix].append(given)
        return key

    def _find(self, item: dict[str, Any], given: str) -> str | None:
        """Return the address of a user in an e-mail project: an event makes no user, and a user id alone makes none."""
        is_event = "eventName" in item
        address: str | None = item.get("email") or self.user_ids.get(given)
        if address is None and item.get("preferUserId"):
            address = f"{given}@placeholder.email"
        if is_event and self._visible_at.get(str(address), math.inf) > self._seconds():
            return None
        if not is_event and address and "userId" in item:
            self.user_ids[item["userId"]] = address
        return address

    def _refusal(self, name: str, items: list[dict[str, Any]]) -> Respond | None:
        """Refuse a whole request for one item of a wrong form, or for a text in a field that holds dates.

        The answer names the place of the item, or the field alone.
        """
        if bad := [n for n, item in enumerate(items) if item["dataFields"].get("refuse") == "json"]:
            return _refused(400, "BadJsonBody", {f"obj.{name}[{bad[0]}].dataFields": "Object expected"})
        for item in items:
            for field, value in item["dataFields"].items():
                if field in self.dates and not re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \+00:00", str(value)):
                    detail = {"incomingTypes": ["string", "keyword"], "expectedType": "date", "category": "user"}
                    errors = {f"my_project_etl:::{field}": detail}
                    return _refused(400, "RequestFieldsTypesMismatched", {"validationErrors": errors})
        return None

    @staticmethod
    def _bulk_answer(number: int, failed: dict[str, list[str]], **more: object) -> Respond:
        count = sum(map(len, failed.values()))
        return _success(successCount=number - count, failCount=count, failedUpdates=failed, **more)


def _first_half(body: dict[str, Any]) -> dict[str, Any]:
    """Return a request with half of its profiles or events; a request for one purchase or cart is whole."""
    bulk = {name: body[name] for name in ("users", "events") if name in body}
    return body | {name: items[: (len(items) + 1) // 2] for name, items in bulk.items()}


def _success(**fields: object) -> Respond:
    return Respond(200, json.dumps({"msg": "", "code": "Success"} | fields).encode())


def _refused(status: int, code: str, params: object) -> Respond:
    return Respond(status, json.dumps({"msg": "refused", "code": code, "params": params}).encode())


class MixedCalls:
    """Random calls of twenty users, and the state of a project that has each of them once and in order.

    Args:
        seed: The seed of the calls.

    Attributes:
        count: Number of calls so far.
    """

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._profiles: dict[str, dict[str, int]] = {}
        self._events: dict[str, dict[str, int]] = {}
        self._purchases: dict[str, float] = {}
        self.count = 0

    def make(self, count: int) -> list[dict[str, Any]]:
        """Return further calls: half of them updates of profiles, the others events and a few purchases."""
        return [self._make_call() for _ in range(count)]

    def assert_arrived(self, project: IterableProject) -> None:
        """Check that every event, purchase and field is there, with its last value."""
        assert project.profiles == self._profiles
        assert {key: event["dataFields"] for key, event in project.events.items()} == self._events
        assert {key: purchase["total"] for key, purchase in project.purchases.items()} == self._purchases

    def _make_call(self) -> dict[str, Any]:
        number = self.count
        self.count += 1
        user = f"u{self._chance.randrange(20)}"
        if self._chance.random() < 0.5:
            traits = {self._chance.choice(["plan", "city", "level"]): number}
            self._profiles.setdefault(user, {}).update(traits)
            return {"type": "identify", "messageId": f"i-{number}", "userId": user, "traits": traits}
        if self._chance.random() < 0.1:
            self._purchases[str(number)] = number + 0.5
            products = [{"product_id": number, "name": "Tea", "price": 3.5}]
            properties = {"order_id": number, "total": number + 0.5, "products": products}
            return {"messageId": f"p-{number}", "userId": user, "event": "Order Completed", "properties": properties}
        self._events[f"t-{number}"] = {"n": number}
        return {"messageId": f"t-{number}", "userId": user, "event": "Played", "properties": {"n": number}}
