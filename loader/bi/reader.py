"""Checks the reader that a BI tool is to use, and reads the first values of its filters from the marts.

No tool gets the loader's role or a role without rights.
"""

from collections.abc import Sequence

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from loader.errors import UsageError
from loader.postgres.statements import read_statement

_RIGHTS = read_statement(__file__, "rights")
_CURRENCY = sql.SQL("select currency from {} group by currency order by count(*) desc, currency limit 1")


def check_reader(connection: psycopg.Connection, url: str, marts_schema: str, marts: Sequence[str]) -> str:
    """Check that the role of a URL is a reader of the marts, and return the name of the URL's database.

    Args:
        connection: A connection to the database of the URL, in a role that may differ.
        url: The URL that the BI tool gets.
        marts_schema: The schema of the marts.
        marts: The marts that the tool reads.

    Raises:
        UsageError: The URL lacks a part, or its role is missing, cannot read the marts, or may do more than read.
    """
    parts = conninfo_to_dict(url)
    if missing_parts := [name for name in ("user", "password", "host", "dbname") if not parts.get(name)]:
        raise UsageError(
            f"The reader's URL lacks {', '.join(missing_parts)}. Set LOADER_READER_URL to the URL that "
            "`loader reader add` has printed."
        )
    role = str(parts["user"])
    values = {"role": role, "marts_schema": marts_schema}
    rights = connection.execute(_RIGHTS, values).fetchone()
    if rights is None:
        raise UsageError(
            f"The database has no role {role}, which the reader's URL names. `loader reader add NAME` makes a reader "
            "and prints its URL. Set LOADER_READER_URL to that URL."
        )
    may_use_raw, readable = rights
    if may_use_raw:
        raise UsageError(
            f"The role {role} is no reader, because it may use the schema raw. `loader reader add NAME` makes a reader "
            "and prints its URL. Set LOADER_READER_URL to that URL."
        )
    if missing := sorted(set(marts) - set(readable or [])):
        raise UsageError(
            f"The role {role} cannot read {', '.join(f'{marts_schema}.{name}' for name in missing)}. If these tables "
            "exist, `loader reader add NAME --source SOURCE` makes a reader of the source. If not, run "
            "`loader transform` with LOADER_MARTS=true."
        )
    return str(parts["dbname"])


def find_main_currency(connection: psycopg.Connection, marts_schema: str) -> str | None:
    """Return the currency of most messages with a conversion; None if no message has a conversion.

    Args:
        connection: A connection whose role reads the marts.
        marts_schema: The schema of the marts.
    """
    found = connection.execute(_CURRENCY.format(sql.Identifier(marts_schema, "attributions"))).fetchone()
    return str(found[0]) if found else None
