"""Reads times in all formats that Iterable writes, and writes times in Segment's format.

Webhooks and exports have `2017-05-15 23:59:47 +00:00`, or `+0000`, or no offset, which means UTC. Profiles and the API
have ISO 8601, sometimes with two fractions (`22:43:34.134105.000Z`). Campaigns have milliseconds since 1970, and
requests have seconds. Any other value is not a time, and not an error. Nothing in this module does I/O.
"""

import re
from datetime import UTC, datetime, timedelta

import msgspec

_WRITTEN = re.compile(
    r"""
    (\d{4}-\d{2}-\d{2}) [T\ ] (\d{2}:\d{2}:\d{2})
    (?: \.(\d+) (?:\.\d+)? )?
    \s* (Z | [+-]\d{2}(?: :?\d{2} )? )?
    """,
    re.VERBOSE | re.ASCII,
)
_COUNTED = re.compile(r"(-?\d{1,15})(?:\.(\d+))?", re.ASCII)
_encode = msgspec.json.Encoder().encode
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# A smaller number counts seconds. As milliseconds it would be before March 1973; as seconds, the limit is in 5138.
_MILLISECONDS = 10**11


def read_moment(value: object) -> datetime | None:
    """Read a time.

    Args:
        value: Text in one of Iterable's formats, or a number since 1970, in seconds or milliseconds.

    Returns:
        The time in UTC; None when it is none, or none that a calendar with four-digit years has.
    """
    if type(value) not in (str, int, float):
        return None
    text = str(value).strip()
    try:
        if written := _WRITTEN.fullmatch(text):
            day, clock, fraction, offset = written.groups()
            part = f".{fraction[:6]:0<6}" if fraction else ""
            return datetime.fromisoformat(f"{day}T{clock}{part}{offset or 'Z'}").astimezone(UTC)
        if counted := _COUNTED.fullmatch(text):
            whole, fraction = int(counted[1]), int(f"{(counted[2] or '')[:6]:0<6}")
            since = whole * 1_000_000 + (-fraction if text.startswith("-") else fraction)
            return _EPOCH + timedelta(microseconds=since if abs(whole) < _MILLISECONDS else since // 1000)
    except (ValueError, OverflowError):
        pass
    return None


def iso_text(moment: datetime) -> str:
    """Write a time in UTC as Segment's calls do: ISO 8601 with milliseconds and `Z`."""
    # `isoformat` takes ten times as long as the encoder, which writes microseconds, or no fraction.
    return f"{_encode(moment)[1:20].decode()}.{moment.microsecond // 1000:03}Z"
