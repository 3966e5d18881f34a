"""The positions up to which the segments of spools have been replayed (`raw.spools`)."""

import psycopg

_ADVANCE = """
    insert into raw.spools (segment, byte_offset) values (%(segment)s, %(end)s)
    on conflict (segment) do update set byte_offset = excluded.byte_offset, updated_at = now()
    where spools.byte_offset = %(offset)s
"""
# Replayed segments are deleted from the disk. So a position that has not changed for a year belongs to no segment.
_FORGET = "delete from raw.spools where updated_at < now() - interval '1 year'"


def read_positions(connection: psycopg.Connection) -> dict[str, int]:
    """Return the position of each segment by the segment's name."""
    return dict(connection.execute("select segment, byte_offset from raw.spools").fetchall())


def forget_old(connection: psycopg.Connection) -> None:
    """Remove the positions of segments that no longer exist."""
    connection.execute(_FORGET)


def advance(connection: psycopg.Connection, segment: str, offset: int, end: int) -> bool:
    """Move the position of a segment from `offset` to `end`; return False if another process has moved the position."""
    parameters = {"segment": segment, "offset": offset, "end": end}
    return connection.execute(_ADVANCE, parameters).rowcount == 1
