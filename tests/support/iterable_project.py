"""A project of Iterable that behaves as its API is documented, and checks each request against its limits."""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from tests.support.receivers import LOST, Received, Respond

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
        disturb: Returns an answer that replaces the project's own; `LOST` applies the request first.
    """

    def __init__(self, project: str = "hybrid", seconds: Callable[[], float] = lambda: 0.0) -> None:
        self.project = project
        self.profiles: dict[str, dict[str, Any]] = {}
        self.history: dict[str, list[dict[str, Any]]] = defaultdict(list)
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
        self.sent: Counter[str] = Counter()
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
        if disturbed is not None and not disturbed.is_lost:
            return disturbed
        take = {
            "/api/users/bulkUpdate": self._update,
            "/api/events/trackBulk": self._track,
            "/api/commerce/trackPurchase": self._purchase,
            "/api/commerce/updateCart": self._cart,
            "/api/users/updateEmail": self._change_email,
        }[request.path]
        answer = take(body)
        return LOST if disturbed is not None else answer

    def _update(self, body: dict[str, Any]) -> Respond:
        users = body["users"]
        assert len(users) <= 1000
        keys = [user[name] for user in users for name in ("email", "userId") if name in user]
        assert len(keys) == len(set(keys)), "a user is twice in one request"
        if refusal := self._type_refusal(users):
            return refusal
        failed: dict[str, list[str]] = defaultdict(list)
        for user in users:
            assert not [name for name in user["dataFields"] if _MANAGED.fullmatch(name)]
            key = self._fails(user, failed)
            if key is None:
                continue
            self.sent[key] += 1
            # "At least 60 seconds" pass before other calls see an update.
            self._visible_at.setdefault(key, self._seconds() + 60)
            fields = self.profiles.setdefault(key, {})
            fields |= user["dataFields"]
            self.history[key].append(user["dataFields"])
        return self._bulk_answer(len(users), failed)

    def _track(self, body: dict[str, Any]) -> Respond:
        events = body["events"]
        assert len(events) <= 1000
        if bad := [n for n, event in enumerate(events) if event["dataFields"].get("refuse") == "json"]:
            params = {f"obj.events[{bad[0]}].dataFields": "Object expected"}
            return _refused(400, "BadJsonBody", params)
        if refusal := self._type_refusal(events):
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
                self.sent[event["id"]] += 1
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

    def _type_refusal(self, items: list[dict[str, Any]]) -> Respond | None:
        """Refuse a whole request for a text in a field that holds dates; the answer names the field alone."""
        for item in items:
            for name, value in item["dataFields"].items():
                if name in self.dates and not re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \+00:00", str(value)):
                    detail = {"incomingTypes": ["string", "keyword"], "expectedType": "date", "category": "user"}
                    errors = {f"my_project_etl:::{name}": detail}
                    return _refused(400, "RequestFieldsTypesMismatched", {"validationErrors": errors})
        return None

    @staticmethod
    def _bulk_answer(number: int, failed: dict[str, list[str]], **more: object) -> Respond:
        count = sum(map(len, failed.values()))
        return _success(successCount=number - count, failCount=count, failedUpdates=failed, **more)


def _success(**fields: object) -> Respond:
    return Respond(200, json.dumps({"msg": "", "code": "Success"} | fields).encode())


def _refused(status: int, code: str, params: object) -> Respond:
    return Respond(status, json.dumps({"msg": "refused", "code": code, "params": params}).encode())
