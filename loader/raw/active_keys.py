"""The write keys in use, as a collector reads them, and their last use."""

from collections.abc import Collection

import psycopg

from loader.postgres.statements import read_statement

_KNOWN = read_statement(__file__, "known")
_USED = """
    update raw.write_keys set last_used_at = now()
    where id = any(%s) and (last_used_at is null or last_used_at < now() - interval '1 second')
"""


def read_active_keys(connection: psycopg.Connection) -> dict[str, tuple[int, str]]:
    """Return the number and the schema of each key that is not revoked, by the hexadecimal SHA-256 of the key."""
    return {digest: (number, schema) for number, digest, schema in connection.execute(_KNOWN)}


def record_use(connection: psycopg.Connection, numbers: Collection[int]) -> None:
    """Record that the keys with these numbers are used now."""
    connection.execute(_USED, (sorted(numbers),))
