"""Reads a run's input and reports in the schema raw: sources, collections, sync reports and held tables."""

from typing import Any

from sqlalchemy import Connection, select

from loader.raw.tables import collections, held_tables, marts, sources, syncs, transforms

_HELD = select(held_tables.c.source, held_tables.c.model, held_tables.c.reason)


def read_sources(connection: Connection) -> list[str]:
    """Return the schemas of the sources, the oldest source first."""
    return list(connection.execute(select(sources.c.schema_name).order_by(sources.c.id)).scalars())


def read_collections(connection: Connection) -> set[str]:
    """Return the collections of all sources, as source.collection."""
    query = select(collections.c.source, collections.c.collection).where(collections.c.collection != "")
    return {f"{source}.{collection}" for source, collection in connection.execute(query)}


def read_syncs(connection: Connection, invocation: str) -> dict[tuple[str, str], Any]:
    """Return the sync reports of a run, by source and table."""
    query = select(
        syncs.c.source,
        syncs.c.model,
        syncs.c.table_rows,
        (syncs.c.read_rows - syncs.c.table_rows).label("duplicates"),
        syncs.c.new_columns,
        syncs.c.duration,
        syncs.c.note,
    ).where(syncs.c.transform_id == invocation)
    return {(row.source, row.model): row for row in connection.execute(query)}


def read_mart_notes(connection: Connection, invocation: str) -> list[tuple[str, str]]:
    """Return the sources whose marts a run has made again because of changed variables, and the changes."""
    query = (
        select(marts.c.source, marts.c.note)
        .where(marts.c.last_run == invocation, marts.c.note.is_not(None))
        .distinct()
        .order_by(marts.c.source, marts.c.note)
    )
    return [(row.source, row.note) for row in connection.execute(query)]


def read_refusals(connection: Connection, invocation: str) -> dict[tuple[str, str], str]:
    """Return the tables that a full refresh has left as they were, because rows would be lost, with the reasons."""
    started = select(transforms.c.started_at).where(transforms.c.id == invocation).scalar_subquery()
    query = _HELD.where(held_tables.c.held == "rebuild", held_tables.c.tried_at >= started)
    return {(row.source, row.model): row.reason for row in connection.execute(query)}


def read_held(connection: Connection) -> dict[tuple[str, str], str]:
    """Return the tables that a run left out, to try them again later, with the reasons."""
    query = _HELD.where(held_tables.c.held == "fill")
    return {(row.source, row.model): row.reason for row in connection.execute(query)}
