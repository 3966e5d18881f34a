"""The present and the expected rows of served tables.

`expected` computes the tables from the events alone, in Python, by the contract. So it can disagree with the SQL.
"""

from collections.abc import Iterable, Sequence

import psycopg

from tests.support.factories import LandedEvent

COLLECTIONS = (
    "email_bounced",
    "email_delivered",
    "email_link_clicked",
    "email_marked_as_spam",
    "email_opened",
    "email_send_skip",
    "hosted_unsubscribe_click",
    "in_app_clicked",
    "in_app_delivered",
    "in_app_opened",
    "in_app_send_skip",
    "in_app_sent",
    "mobile_app_uninstalled",
    "push_bounced",
    "push_delivered",
    "push_opened",
    "push_send_skip",
    "sms_bounced",
    "sms_clicked",
    "sms_delivered",
    "sms_received",
    "sms_send_skip",
    "subscribed",
    "unsubscribed",
    "web_push_clicked",
    "web_push_delivered",
    "web_push_send_skip",
)


TABLES = (*COLLECTIONS, "tracks")


def expected(events: Iterable[LandedEvent], source: str, table: str) -> dict[str, LandedEvent]:
    """Return the expected rows of a table: for each id, the first landed event."""
    rows: dict[str, LandedEvent] = {}
    for event in sorted(events, key=lambda e: e.seq):
        belongs = event.collection is not None if table == "tracks" else event.collection == table
        if belongs and event.source == source:
            rows.setdefault(event.message_id, event)
    return rows


def contents(connection: psycopg.Connection, table: str, *, without: Sequence[str] = ("uuid_ts",)) -> list[tuple]:
    """Return all rows of a served table in a fixed order, without some of its columns."""
    schema, name = table.split(".")
    columns = connection.execute(
        "select string_agg(quote_ident(column_name::text), ', ' order by ordinal_position)"
        " from information_schema.columns where table_schema = %s and table_name = %s and column_name <> all(%s)",
        (schema, name, list(without)),
    ).fetchone()
    assert columns is not None
    return connection.execute(f"select {columns[0]} from {table} order by id").fetchall()


def everything(connection: psycopg.Connection, source: str = "iterable") -> dict[str, list[tuple]]:
    """Return the state that increments and a rebuild must share: every table, and the listed values."""
    tables = connection.execute(
        "select model from raw.cursors where source = %s and snapshot is not null", (source,)
    ).fetchall()
    state = {table: contents(connection, f"{source}.{table}") for (table,) in tables}
    state["mismatches"] = connection.execute(
        "select model, event_id, column_name, value from raw.mismatches where source = %s order by 1, 2, 3", (source,)
    ).fetchall()
    return state


def assert_union(connection: psycopg.Connection, source: str = "iterable") -> None:
    """Check that tracks has the ids of all collections and of events without a collection, and no others."""
    served = connection.execute("select model from raw.cursors where source = %s order by 1", (source,)).fetchall()
    collections = [table for (table,) in served if table in COLLECTIONS]
    assert collections
    union = " union ".join(f"select id from {source}.{table}" for table in collections)
    only = ", ".join(f"'{table}'" for table in collections)
    query = f"""
        (select id from {source}.tracks where event not in ({only}) or event is null union {union})
        except select id from {source}.tracks
    """
    assert connection.execute(query).fetchall() == []
    assert (
        connection.execute(f"select id from {source}.tracks where event in ({only}) except ({union})").fetchall() == []
    )


def law(connection: psycopg.Connection, source: str = "iterable") -> dict[str, int]:
    """Return the conservation law of a source, and check that it adds up."""
    with connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        row = cursor.execute("select * from raw.conservation where source = %s", (source,)).fetchone()
    assert row is not None
    numbers = {name: int(value) for name, value in row.items() if name != "source"}
    parts = "in_collections in_tracks_only quarantined discarded duplicates other_calls excluded waiting".split()
    assert numbers["accepted"] == sum(numbers[part] for part in parts), numbers
    assert numbers.pop("missing_in_collections") == 0
    assert numbers.pop("missing_in_tracks") == 0
    return numbers
