"""The examples of Iterable's events: the track call that Segment makes of an event, and the body of its webhook."""

import json
from typing import Any

from loader.events.formats import parse_message
from loader.events.model import Event
from tests.support.folders import DATA

# By the name of the case; each has the keys `track` and `webhook`.
CASES: dict[str, dict[str, Any]] = {}
for _line in (DATA / "example_payloads.jsonl").read_text(encoding="utf-8").splitlines():
    _example = json.loads(_line)
    CASES.setdefault(_example["case"], {}).update(_example)


def accepted(entrance: str, message: dict[str, Any], offset: int = 0) -> Event:
    """Return the accepted event of a message."""
    (event,) = parse_message(entrance, json.dumps(message).encode(), offset)
    assert isinstance(event, Event)
    return event
