"""Converts names of sources, events and properties to names of schemas, tables and columns.

Senders choose the names of events and properties, and a warehouse has lower-case identifiers with underscores. The
rules are those of Segment's `go-snakecase` library, so tables have the same names as in a Segment warehouse. All
functions of this module are pure.
"""

import hashlib
import re
from collections.abc import Sequence

# PostgreSQL cuts longer identifiers silently (NAMEDATALEN - 1 bytes).
IDENTIFIER_BYTES = 63

# A word is capitals and digits, followed by small letters and digits. All other characters separate words.
_WORD = re.compile(r"[A-Z0-9]+[a-z0-9]*|[a-z0-9]+")
_CLEAN = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)*\Z")

# Tables of the layout that are not the table of one event. No event's table may have their names.
BUILT_IN_TABLES = frozenset({"accounts", "aliases", "groups", "identifies", "pages", "screens", "tracks", "users"})

# System columns that every table of PostgreSQL has. No other column may have their names.
SYSTEM_COLUMNS = frozenset({"cmax", "cmin", "ctid", "tableoid", "xmax", "xmin"})

# Redshift's reserved words. Segment applies this one list to every warehouse, PostgreSQL included (a Segment-loaded
# PostgreSQL has columns `_user` and `_tag`); `language` and the layout's own `timestamp` stay bare there.
RESERVED_WORDS = frozenset(
    """
    aes128 aes256 all allowoverwrite analyse analyze and any array as asc authorization az64 backup between binary
    blanksasnull both bytedict bzip2 case cast check collate column constraint create credentials cross current_date
    current_time current_timestamp current_user current_user_id default deferrable deflate defrag delta delta32k desc
    disable distinct do else emptyasnull enable encode encrypt encryption end except explicit false for foreign freeze
    from full globaldict256 globaldict64k grant group gzip having identity ignore ilike in initially inner intersect
    interval into is isnull join leading left like limit localtime localtimestamp lun luns lzo lzop minus mostly16
    mostly32 mostly8 natural new not notnull null nulls off offline offset oid old on only open or order outer overlaps
    parallel partition percent permissions pivot placing primary raw readratio recover references rejectlog resort
    respect restore right select session_user similar snapshot some sysdate system table tag tdes text255 text32k then
    to top trailing true truncatecolumns union unique unnest unpivot user using verbose wallet when where with without
    """.split()
)


def snake_case(name: str) -> str:
    """Convert a name to snake case by the rules of Segment's `go-snakecase` (1.1 and later).

    Args:
        name: Any text. Characters other than ASCII letters and digits separate words and are removed.

    Returns:
        Words in lower case joined by `_`; an empty text if the name has no ASCII letter or digit.
    """
    if _CLEAN.match(name):
        return name
    return "_".join(_WORD.findall(name)).lower()


def identifier(name: str) -> str:
    """Convert a name in snake case to an identifier that needs no quotes and that PostgreSQL does not cut.

    A reserved word or a leading digit gets one `_` in front. A name over 63 bytes is cut and ends in eight hexadecimal
    digits of its hash. So two long names with the same beginning stay distinct.
    """
    if name in RESERVED_WORDS or name[:1].isdigit():
        name = f"_{name}"
    if len(name) > IDENTIFIER_BYTES:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{name[: IDENTIFIER_BYTES - 9]}_{digest}"
    return name


def table_name(event: str) -> str:
    """Return the table of an event name, e.g. `email_delivered` for `Email Delivered`.

    Returns:
        The table's name; an empty text if the event has no table, because its name has no ASCII letter or digit.
    """
    name = snake_case(event)
    return f"_{name}" if name in BUILT_IN_TABLES else identifier(name)


def column_name(path: Sequence[str]) -> str:
    """Return the column of a property, e.g. `context_traits_email` for the path context, traits, email.

    Args:
        path: The keys of the property. The first is `context`, or `properties`, which is not part of the name.

    Returns:
        The column's name; an empty text if the property has no column, because no key has an ASCII letter or digit.
    """
    keys = path[1:] if path[0] == "properties" else path
    name = identifier("_".join(filter(None, map(snake_case, keys))))
    return f"_{name}" if name in SYSTEM_COLUMNS else name


def schema_name(source: str) -> str:
    """Return the schema of a source name, e.g. `customerio` for `Customer.io`.

    Unlike in names of tables, capitals do not begin words. Letters become lower case, and white space and `-` become
    `_`. All other characters outside `[a-z0-9_]` are removed.

    Returns:
        The schema's name; an empty text if nothing of the source's name is left.
    """
    name = re.sub(r"[\s-]+", "_", source.strip().lower())
    name = re.sub(r"[^a-z0-9_]", "", name)
    name = re.sub(r"_+", "_", name).strip("_")
    return f"_{name}" if name[:1].isdigit() else name
