"""The write keys in use, as a collector reads them, their last use, and calls that came back."""

from collections.abc import Collection

import psycopg

from loader.postgres.statements import read_statement

_KNOWN = read_statement(__file__, "known")
_USED = """
    update raw.write_keys set last_used_at = now()
    where id = any(%s) and (last_used_at is null or last_used_at < now() - interval '1 second')
"""
_RETURNED = """
    insert into raw.returned_calls (source, calls) values (%s, %s)
    on conflict (source) do update set
        calls = returned_calls.calls + excluded.calls,
        last_at = excluded.last_at
"""


def read_active_keys(connection: psycopg.Connection) -> dict[str, tuple[int, str]]:
    """Return the number and the schema of each key that is not revoked, by the hexadecimal SHA-256 of the key."""
    return {digest: (number, schema) for number, digest, schema in connection.execute(_KNOWN)}


def record_use(connection: psycopg.Connection, numbers: Collection[int]) -> None:
    """Record that the keys with these numbers are used now."""
    connection.execute(_USED, (sorted(numbers),))


def record_returned(connection: psycopg.Connection, source: str, number: int) -> None:
    """Add to the number of forwarded calls of a source that came back."""
    connection.execute(_RETURNED, (source, number))
