"""Reads the values of rows as the marts' contract says: texts, ids, times, quotients and links."""

import json
import re
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal, localcontext
from typing import Any
from zoneinfo import ZoneInfo

Row = dict[str, Any]

_MILLIONTH = Decimal("0.000001")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME = re.compile(
    r"(?P<date>\d{4}-\d\d-\d\d)[T ](?P<clock>\d\d:\d\d(?::\d\d)?)(?P<fraction>\.\d+)?"
    r"\s*(?P<offset>[Zz]|[Uu][Tt][Cc]|[+-]\d\d(?::?\d\d)?)?\s*"
)
_NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SMALLEST, _LARGEST = -(2**63), 2**63 - 1


def text(value: Any) -> str | None:
    """Return a text without the spaces around it; None if nothing is left."""
    return (str(value).strip(" ") or None) if value is not None else None


def iterable_id(value: Any) -> int | None:
    """Return an id of Iterable; 0 means none."""
    return int(value) if value else None


def number(value: Any) -> Decimal | None:
    """Return the finite number that a value or its text holds, else None."""
    if value is None or isinstance(value, bool):
        return None
    written = str(value)
    if len(written.encode()) > 1000 or not _NUMBER.fullmatch(written):
        return None
    return Decimal(written.strip())


def whole_number(value: Any) -> int | None:
    """Return the integer of 64 bits that a JSON value or its text holds, else None."""
    exact = number(value)
    if exact is None or exact != exact.to_integral_value() or not _SMALLEST <= exact <= _LARGEST:
        return None
    return int(exact)


def time_of(value: Any) -> datetime | None:
    """Return a time, or the time that a text in ISO order holds; without an offset, it is UTC."""
    if value is None:
        return None
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    found = _TIME.fullmatch(str(value).strip(" "))
    if not found:
        return None
    offset = found["offset"] or "+00:00"
    offset = "+00:00" if offset.upper() in {"Z", "UTC"} else offset
    try:
        moment = datetime.fromisoformat(f"{found['date']}T{found['clock']}{offset}")
    except ValueError:
        return None
    microseconds = round(Decimal(found["fraction"] or 0) * 1_000_000)
    return (moment + timedelta(microseconds=microseconds)).astimezone(UTC)


def day_of(moment: datetime, zone: str) -> date:
    """Return the day of a time in a time zone."""
    return moment.astimezone(ZoneInfo(zone)).date()


def whole_seconds(start: datetime | None, end: datetime | None) -> int | None:
    """Return the whole seconds from one time to another, rounded down; 0 rather than a negative number."""
    return max((end - start) // timedelta(seconds=1), 0) if start and end else None


def seconds_since_1970(moment: datetime) -> int:
    """Return the whole seconds since 1970, rounded down."""
    return (moment - _EPOCH) // timedelta(seconds=1)


def round_six(value: Decimal) -> Decimal:
    """Return a number with six decimals, rounded half away from zero."""
    with localcontext(prec=200):
        return value.quantize(_MILLIONTH, ROUND_HALF_UP)


def quotient(numerator: Decimal | int, denominator: Decimal | int) -> Decimal | None:
    """Return a quotient with six decimals; None without a denominator."""
    if not denominator:
        return None
    with localcontext(prec=200):
        return round_six(Decimal(numerator) / Decimal(denominator))


def first_of(values: Iterable[Any]) -> Any:
    """Return the first value that is not None."""
    return next((value for value in values if value is not None), None)


def least(values: Iterable[Any]) -> Any:
    """Return the least value that is not None, or None."""
    return min((value for value in values if value is not None), default=None)


def greatest(values: Iterable[Any]) -> Any:
    """Return the greatest value that is not None, or None."""
    return max((value for value in values if value is not None), default=None)


def email_of(row: Row) -> str | None:
    """Return the address of a row: the first usable of its properties, its traits and its anonymous id."""
    anonymous_id = text(row.get("anonymous_id"))
    candidates = [
        text(row.get("email")),
        text(row.get("context_traits_email")),
        anonymous_id if anonymous_id and "@" in anonymous_id else None,
    ]
    addresses = [candidate.lower() for candidate in candidates if candidate]
    return first_of(address for address in addresses if not address.endswith("@placeholder.email"))


def user_key_of(user_id: str | None, email: str | None, anonymous_id: str | None = None) -> str | None:
    """Return the key of a user: by the user id, else by the address, else by the anonymous id."""
    if user_id:
        return f"u:{user_id}"
    if email:
        return f"e:{email}"
    return f"a:{anonymous_id}" if anonymous_id else None


def link_of(url: str | None) -> str | None:
    """Return a URL without query and fragment, with scheme and host in lower case."""
    if url is None:
        return None
    link = re.split(r"[?#]", url, maxsplit=1)[0]
    scheme = _SCHEME.match(link)
    if scheme:
        end = link.find("/", scheme.end())
        end = len(link) if end < 0 else end
        link = link[:end].lower() + link[end:]
    return link or None


def ids_in(value: Any) -> set[int]:
    """Return the ids in a text: of a JSON array, or of one JSON number."""
    written = text(value)
    if written is None:
        return set()
    try:
        document = json.loads(written, parse_float=Decimal, parse_constant=_refuse)
    except ValueError:
        return set()
    if isinstance(document, list):
        elements = document
    elif isinstance(document, int | Decimal) and not isinstance(document, bool):
        elements = [document]
    else:
        elements = []
    found = {whole_number(element) for element in elements if isinstance(element, int | Decimal | str)}
    return {each for each in found if each}


def _refuse(name: str) -> None:
    raise ValueError(name)
