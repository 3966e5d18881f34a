"""Makes the rows of served tables from calls, so that a test of the marts needs no database."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tests.support.layout_model import expect, fits
from tests.support.marts.values import Row, time_of


def serve(calls: Sequence[Mapping[str, Any]]) -> dict[str, list[Row]]:
    """Return the rows of each table for calls in the order of landing; of calls with one id, the first counts."""
    return {
        name: [
            _row(name, call) | {each: _value(column, call) for each, column in table.columns.items()}
            for call in table.rows.values()
        ]
        for name, table in expect(calls).items()
    }


def _row(table: str, call: Mapping[str, Any]) -> Row:
    return {
        "id": call["messageId"],
        "user_id": call.get("userId"),
        "anonymous_id": call.get("anonymousId"),
        "event": table,
        "timestamp": time_of(call["timestamp"]),
    }


def _value(column: Any, call: Mapping[str, Any]) -> Any:
    value = fits(column.value(call), column.data_type)
    return json.dumps(value) if column.data_type == "text" and not isinstance(value, str | None) else value
