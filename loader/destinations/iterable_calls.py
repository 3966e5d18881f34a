"""Maps tracking calls to requests of Iterable's API, as Segment's destination for Iterable does.

One call becomes one item: a profile, an event, a purchase, a cart or a change of address. Nothing in this module does
I/O.

https://segment.com/docs/connections/destinations/catalog/actions-iterable/
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec

from loader.destinations.model import Call
from loader.destinations.options import Options
from loader.events.timestamps import read_moment

LONGEST_TEXT = 32_000
_EMAIL_CHARACTERS = 254
_EVENT_ID_BYTES = 512

_EMAIL = re.compile(r"[^@\s]+@[^@\s]+")
_USER_ID = re.compile(r"[ -~]{0,51}[!-~]")
_EVENT_ID = re.compile(r"[A-Za-z0-9-]+")
# Only a time with its date makes a field a date. Segment leaves a date alone as it is.
_DATE_TIME = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:?\d{2})?", re.ASCII)

# Fields of a profile that Iterable manages itself.
_MANAGED = frozenset({"emailListIds", "userListIds", "profileUpdatedAt", "signupDate", "signupSource", "devices"})
_MANAGED_PREFIXES = ("itbl", "subscribed", "unsubscribed")

_CART_EVENTS = frozenset({"Product Added", "Product Removed"})
_ITEM_FIELDS = {
    "product_id",
    "productId",
    "id",
    "sku",
    "name",
    "price",
    "quantity",
    "category",
    "categories",
    "url",
    "image_url",
    "imageUrl",
    "description",
}

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Endpoint(StrEnum):
    """The endpoints of Iterable's API that items go to."""

    USERS = "/api/users/bulkUpdate"
    EVENTS = "/api/events/trackBulk"
    PURCHASE = "/api/commerce/trackPurchase"
    CART = "/api/commerce/updateCart"
    EMAIL = "/api/users/updateEmail"


class Item(msgspec.Struct, frozen=True):
    """The part of a request that one call becomes.

    Attributes:
        email: The address that identifies the user; empty if the user id does so alone.
        user_id: The user id; empty if the address does so alone.
        body: The item as the request has it.
        notes: Fields that were left out, with their numbers.
    """

    call: Call
    endpoint: Endpoint
    email: str
    user_id: str
    body: dict[str, Any]
    notes: Counter[str]

    @property
    def keys(self) -> list[str]:
        """The keys by which Iterable's answers name the user."""
        return [key for key in (normalize_email(self.email), self.user_id) if key]


class UnmappableError(Exception):
    """A call cannot become an item; the reason is the code of a dead letter."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def map_call(call: Call, options: Options) -> Item | None:
    """Return the item of a call; None for a call that the settings leave out.

    Raises:
        UnmappableError: The call has no user, or values that Iterable would refuse.
    """
    try:
        return _map(call, options)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        # A call that lands may be nested deeper than this mapping can go, or have numbers of thousands of digits.
        raise UnmappableError("unreadable") from None


def _map(call: Call, options: Options) -> Item | None:
    fields = _decode(call.body)
    properties, traits = _object(fields.get("properties")), _object(fields.get("traits"))
    known = _object(_object(fields.get("context")).get("traits"))
    mapping = _Mapping(call, options, fields)
    match fields.get("type"):
        case "identify":
            return mapping.profile(traits.get("email"), traits)
        case "group" if options.group == "fields":
            return mapping.profile(traits.get("email") or known.get("email"), {"group": traits})
        case "alias" if options.alias == "email":
            return mapping.new_email(fields.get("previousId"), fields.get("userId"))
        case "track":
            email = properties.get("email") or known.get("email")
            name = _text(fields.get("event"))
            if name == options.purchase_event:
                return mapping.purchase(email, properties, known)
            if options.carts != "off" and name == options.cart_event:
                return mapping.cart(email, properties, known)
            if options.carts == "classic" and name in _CART_EVENTS and isinstance(properties.get("products"), list):
                return mapping.cart(email, properties, known)
            return mapping.event(email, name, properties)
        case "page" | "screen" as kind if options.pages != "off":
            name = _text(fields.get("name")) or _text(properties.get("name"))
            if not name and options.pages == "named":
                return None
            email = properties.get("email") or known.get("email")
            return mapping.event(email, f"{name} {kind}" if name else "Loaded a Page", properties)
    return None


def group_profiles(items: Iterable[Item]) -> tuple[list[list[Item]], list[Item]]:
    """Group profile items by user, so that a request has each user once.

    Args:
        items: Profile items, in landing order.

    Returns:
        The groups, and the items that must wait for a later request. They join two users of this request, or give one
        user another key.
    """
    by_key: dict[str, list[Item]] = {}
    groups: list[list[Item]] = []
    rest = list(items)
    for place, item in enumerate(rest):
        found = {id(by_key[key]): by_key[key] for key in item.keys if key in by_key}
        if len(found) > 1 or any(_contradicts(item, other) for group in found.values() for other in group):
            return groups, rest[place:]
        group = next(iter(found.values()), [])
        if not group:
            groups.append(group)
        group.append(item)
        for key in item.keys:
            by_key[key] = group
    return groups, []


def merged_body(group: list[Item], *, nested: bool) -> dict[str, Any]:
    """Return one profile item for several of one user: the last value of each field wins."""
    body: dict[str, Any] = {}
    data: dict[str, Any] = {}
    for item in group:
        body |= item.body
        data = _merge(data, item.body.get("dataFields", {}), nested=nested)
    if data:
        body["dataFields"] = data
    return body


def normalize_email(email: str) -> str:
    """Return an address in the form in which two addresses of one user are equal."""
    return email.strip().lower()


def key_digest(key: str) -> bytes:
    """Return the SHA-256 of a user's key, under which a forgotten user is remembered."""
    return hashlib.sha256(key.encode()).digest()


class _Mapping:
    """Maps one call."""

    def __init__(self, call: Call, options: Options, fields: Mapping[str, Any]) -> None:
        self._call = call
        self._options = options
        self._fields = fields
        self._notes: Counter[str] = Counter()

    def profile(self, email: object, traits: Mapping[str, Any]) -> Item:
        address, user_id = self._who(email)
        data = {name: value for name, value in traits.items() if name not in {"email", "userId"}}
        if traits.get("phone") is not None:
            data["phoneNumber"] = traits["phone"]
        user = self._user(address, user_id, data)
        return self._item(Endpoint.USERS, address, user_id, user)

    def event(self, email: object, name: str, properties: Mapping[str, Any]) -> Item:
        if not name:
            raise UnmappableError("no_event_name")
        address, user_id = self._who(email)
        body = {
            "eventName": name,
            **self._sent_keys(address, user_id),
            "id": event_id(self._call.message_id),
            "createdAt": self._created_at(),
            "dataFields": self._values(properties),
            **_campaign(properties),
        }
        if self._options.create_fields is not None:
            body["createNewFields"] = self._options.create_fields
        return self._item(Endpoint.EVENTS, address, user_id, body)

    def purchase(self, email: object, properties: Mapping[str, Any], known: Mapping[str, Any]) -> Item:
        address, user_id = self._who(email)
        total = _number(properties.get("total"))
        total = _number(properties.get("revenue")) if total is None else total
        items = self._items(properties)
        if total is None or not items:
            raise UnmappableError("invalid_purchase")
        body = {
            "id": _text(properties.get("order_id")) or self._call.message_id,
            "user": self._buyer(address, user_id, known),
            "items": items,
            "total": total,
            "createdAt": self._created_at(),
            "dataFields": self._values({name: value for name, value in properties.items() if name != "products"}),
            **_campaign(properties),
        }
        return self._item(Endpoint.PURCHASE, address, user_id, body)

    def cart(self, email: object, properties: Mapping[str, Any], known: Mapping[str, Any]) -> Item:
        address, user_id = self._who(email)
        body = {"user": self._buyer(address, user_id, known), "items": self._items(properties)}
        return self._item(Endpoint.CART, address, user_id, body)

    def new_email(self, before: object, after: object) -> Item | None:
        if not (isinstance(before, str) and isinstance(after, str) and _EMAIL.fullmatch(before)):
            return None
        if not _EMAIL.fullmatch(after) or self._options.project != "email":
            return None
        return self._item(Endpoint.EMAIL, before, "", {"currentEmail": before, "newEmail": after})

    def _item(self, endpoint: Endpoint, email: str, user_id: str, body: dict[str, Any]) -> Item:
        if self._options.project == "userid":
            email = ""
        return Item(self._call, endpoint, email, user_id, body, self._notes)

    def _who(self, email: object) -> tuple[str, str]:
        """Return the user's address and id.

        Raises:
            UnmappableError: Neither is there, or one is not valid.
        """
        address = email.strip() if isinstance(email, str) else ""
        user_id = _text(self._fields.get("userId"))
        if not user_id and (self._options.project == "userid" or not address):
            raise UnmappableError("no_user")
        if address and (len(address) > _EMAIL_CHARACTERS or not _EMAIL.fullmatch(address)):
            raise UnmappableError("invalid_email")
        if user_id and not _USER_ID.fullmatch(user_id):
            raise UnmappableError("invalid_user_id")
        return address, user_id

    def _sent_keys(self, email: str, user_id: str) -> dict[str, Any]:
        keys: dict[str, Any] = {}
        if email and self._options.project != "userid":
            keys["email"] = email
        if user_id:
            keys["userId"] = user_id
        return keys

    def _user(self, email: str, user_id: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return a profile with its keys."""
        options = self._options
        kept = dict(data)
        if options.project == "userid" and email:
            kept["email"] = email
        user = self._sent_keys(email, user_id)
        user["dataFields"] = self._values(self._unmanaged(kept))
        user["mergeNestedObjects"] = options.merge_nested_objects
        if options.prefer_user_id and not email:
            user["preferUserId"] = True
        return user

    def _buyer(self, email: str, user_id: str, known: Mapping[str, Any]) -> dict[str, Any]:
        return self._user(email, user_id, {name: value for name, value in known.items() if name != "email"})

    def _unmanaged(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that Iterable does not manage itself, and note the others."""
        kept = {}
        for name, value in data.items():
            if name in _MANAGED or name.startswith(_MANAGED_PREFIXES):
                self._notes[f"managed field {name[:100]} left out"] += 1
            else:
                kept[name] = value
        return kept

    def _items(self, properties: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the items of a purchase or a cart; a cart may be empty.

        Raises:
            UnmappableError: There is no list of items, or an item has no name, price or id.
        """
        products = properties.get("products")
        if not isinstance(products, list):
            raise UnmappableError("invalid_purchase")
        items = []
        for product in products:
            given = _object(product)
            number = next(
                filter(None, (_text(given.get(name)) for name in ("product_id", "productId", "id", "sku"))), ""
            )
            price, name = _number(given.get("price")), given.get("name")
            if price is None or not isinstance(name, str) or not name or not number:
                raise UnmappableError("invalid_purchase")
            quantity = _number(given.get("quantity"))
            item: dict[str, Any] = {
                "id": number,
                "name": name,
                "price": price,
                "quantity": 1 if quantity is None else int(quantity),
            }
            if sku := _text(given.get("sku")):
                item["sku"] = sku
            category = given.get("categories", given.get("category"))
            if category:
                item["categories"] = [str(each) for each in (category if isinstance(category, list) else [category])]
            for target, sources in (("url", ("url",)), ("imageUrl", ("image_url", "imageUrl"))):
                if found := next((given[source] for source in sources if isinstance(given.get(source), str)), None):
                    item[target] = found
            if isinstance(given.get("description"), str):
                item["description"] = given["description"]
            item["dataFields"] = self._values({k: v for k, v in given.items() if k not in _ITEM_FIELDS})
            items.append(item)
        return items

    def _values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        converted: dict[str, Any] = self._value(dict(values))
        return converted

    def _value(self, value: Any) -> Any:
        """Return a value as Iterable reads it, at every depth.

        Raises:
            UnmappableError: A text is too long, and the settings do not cut it.
        """
        if isinstance(value, dict):
            keeps_nulls = self._options.nulls == "send"
            return {name: self._value(each) for name, each in value.items() if each is not None or keeps_nulls}
        if isinstance(value, list):
            return [self._value(each) for each in value]
        if not isinstance(value, str):
            return value
        if _DATE_TIME.fullmatch(value) and (moment := read_moment(value)):
            return f"{moment.isoformat(' ', 'seconds').removesuffix('+00:00')} +00:00"
        if len(value) > LONGEST_TEXT:
            if self._options.long != "cut":
                raise UnmappableError("long_text")
            self._notes["long text cut"] += 1
            return value[:LONGEST_TEXT]
        return value

    def _created_at(self) -> int:
        """Return the time of the event in seconds since 1970."""
        moment = read_moment(self._fields.get("timestamp")) or datetime.fromisoformat(self._call.received_at)
        return int(moment.timestamp())


def event_id(message_id: str) -> str:
    """Return the id of an event, under which a repeated event replaces the first one."""
    if _EVENT_ID.fullmatch(message_id) and len(message_id) <= _EVENT_ID_BYTES:
        return message_id
    return hashlib.sha256(message_id.encode()).hexdigest()[:32]


def _campaign(properties: Mapping[str, Any]) -> dict[str, int]:
    return {
        name: properties[name]
        for name in ("campaignId", "templateId")
        if isinstance(properties.get(name), int) and not isinstance(properties[name], bool)
    }


def _merge(before: dict[str, Any], after: Mapping[str, Any], *, nested: bool) -> dict[str, Any]:
    merged = dict(before)
    for name, value in after.items():
        if nested and isinstance(value, dict) and isinstance(merged.get(name), dict):
            merged[name] = _merge(merged[name], value, nested=True)
        else:
            merged[name] = value
    return merged


def _contradicts(item: Item, other: Item) -> bool:
    """Return whether two items have an equal key and another key that differs."""
    emails = {normalize_email(each.email) for each in (item, other) if each.email}
    return len(emails) > 1 or len({each.user_id for each in (item, other) if each.user_id}) > 1


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    """Return a text or a number as text; an empty text for any other value."""
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def _number(value: object) -> int | float | None:
    """Return a number, or the number that a text holds; None for any other value."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return None
        if math.isfinite(number):
            return int(number) if number.is_integer() else number
    return None
