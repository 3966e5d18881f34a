"""Takes messages out of the quarantine for good; raw.discarded keeps how many there were, and of which kind."""

from dataclasses import asdict, dataclass

import psycopg

from loader.errors import UsageError


@dataclass(frozen=True)
class Selection:
    """Which open messages: those that fit everything that is given.

    Attributes:
        load: The number of a load in raw.loads.
        reason: A reason code.
        path: A file, or a folder with all files in it.
    """

    load: int | None = None
    reason: str | None = None
    path: str | None = None


# A load's messages came from its file, before the next load of that file began.
_CHOSEN = """
    resolved_at is null
    and (%(reason)s::text is null or reason = %(reason)s)
    and (%(path)s::text is null or path = %(path)s or starts_with(path, rtrim(%(path)s, '/') || '/'))
    and (
        %(load)s::bigint is null
        or exists (
            select from raw.loads
            where
                loads.id = %(load)s
                and loads.source = quarantine.source
                and loads.path = quarantine.path
                and quarantine.received_at >= loads.started_at
                and quarantine.received_at < coalesce(
                    (
                        select min(later.started_at)
                        from raw.loads as later
                        where later.source = loads.source and later.path = loads.path and later.id > loads.id
                    ),
                    'infinity'
                )
        )
    )
"""
_COUNT = f"""
    select count(*), coalesce(sum(octet_length(payload)), 0)::bigint
    from raw.quarantine
    where {_CHOSEN}
"""  # noqa: S608 - constants
_DISCARD = f"""
    with gone as (
        delete from raw.quarantine
        where {_CHOSEN}
        returning source, entrance, reason, path, octet_length(payload) as bytes, received_at
    ),

    noted as (
        insert into raw.discarded (source, entrance, reason, path, messages, bytes, first_received_at, last_received_at)
        select source, entrance, reason, path, count(*), sum(bytes), min(received_at), max(received_at)
        from gone
        group by source, entrance, reason, path
        returning messages, bytes
    )

    select coalesce(sum(messages), 0)::bigint, coalesce(sum(bytes), 0)::bigint from noted
"""  # noqa: S608 - constants


def count_messages(connection: psycopg.Connection, selection: Selection) -> tuple[int, int]:
    """Return how many open messages there are, and how many bytes they have.

    Raises:
        UsageError: There is no such load.
    """
    if (
        selection.load is not None
        and not connection.execute("select from raw.loads where id = %s", (selection.load,)).rowcount
    ):
        raise UsageError(f"There is no load {selection.load}: the table raw.loads has the numbers.")
    return _sums(connection, _COUNT, selection)


def discard_messages(connection: psycopg.Connection, selection: Selection) -> tuple[int, int]:
    """Remove open messages, and note in the same transaction how many; return that, and how many bytes they had."""
    return _sums(connection, _DISCARD, selection)


def _sums(connection: psycopg.Connection, statement: str, selection: Selection) -> tuple[int, int]:
    row = connection.execute(statement.encode(), asdict(selection)).fetchone()
    assert row is not None  # noqa: S101 - an aggregate has a row
    return row[0], row[1]
