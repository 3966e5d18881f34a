"""Calls, lines and events for tests."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg


def call(message_id: str | None = "m1", **fields: object) -> dict[str, Any]:
    """Return a documented track call with other fields; a field given as None is left out."""
    whole = {"type": "track", "event": "Email Opened", "userId": "u1", "messageId": message_id} | fields
    return {name: value for name, value in whole.items() if value is not None}


def call_line(message_id: str | None = "m1", **fields: object) -> bytes:
    """Return that call as a line, without its newline."""
    return json.dumps(call(message_id, **fields)).encode()


def landed(connection: psycopg.Connection) -> list[str]:
    """Return the ids of all events in raw.events, in the order of landing."""
    return [row[0] for row in connection.execute("select message_id from raw.events order by seq")]


@dataclass(frozen=True)
class LandedEvent:
    """One row of raw.events; `mark` identifies the row, and `campaign` is the value of its campaignId."""

    seq: int
    source: str
    collection: str | None
    message_id: str
    mark: str
    campaign: object


def insert_event(
    connection: psycopg.Connection,
    collection: str | None,
    message_id: str,
    *,
    source: str = "iterable",
    campaign: object = 1,
    mark: str = "u",
) -> LandedEvent:
    """Insert one event in the connection's transaction, like any program with access to the table."""
    kind = "identify" if collection is None else "track"
    payload = {"type": kind, "event": collection, "userId": mark, "properties": {"campaignId": campaign}}
    row = connection.execute(
        "insert into raw.events (source, collection, message_id, payload) values (%s, %s, %s, %s) returning seq",
        (source, collection, message_id, json.dumps(payload)),
    ).fetchone()
    assert row is not None
    return LandedEvent(row[0], source, collection, message_id, mark, campaign)


def insert_payload(connection: psycopg.Connection, message_id: str, payload: Mapping[str, Any], **columns: Any) -> None:
    """Insert one event with any payload."""
    values = {"source": "iterable", "collection": "email_opened"} | columns
    values |= {"message_id": message_id, "payload": json.dumps(payload)}
    names = ", ".join(values)
    places = ", ".join(["%s"] * len(values))
    connection.execute(f"insert into raw.events ({names}) values ({places})", list(values.values()))
