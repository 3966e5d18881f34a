"""Every error the loader raises on purpose, in one place.

A message says what happened, to what, and what to do next; the command line prints it after `Error:` and never a
traceback. The class carries the exit code, so a script can tell its own mistake (2) from work that failed (1).
"""

import re

# PostgreSQL's DETAIL and CONTEXT quote rows and statements, and its messages quote values. `raw.without_values` is the
# same in SQL.
_DETAIL = re.compile(r"\s+(?:DETAIL|CONTEXT|LINE \d+):.*", re.DOTALL)
_VALUE = re.compile(r"""(?<=: )"[^"]*"?|(?<=value )"[^"]*"?|(?<=[ (])'[^']*'|\S+@\S+""")


def without_values(message: object) -> str:
    """Return an error of the database, or a text that quotes one, in one line and without any value of an event."""
    return " ".join(_VALUE.sub("…", _DETAIL.sub("", str(message))).split())


class LoaderError(Exception):
    """Work failed: the message says what, where and what to do next."""

    exit_code = 1


class UsageError(LoaderError):
    """The command was given something it cannot work with."""

    exit_code = 2


class DatabaseError(LoaderError):
    """The database cannot be reached, is too old, or refuses to do what is needed."""


class EmbeddedError(DatabaseError):
    """The embedded PostgreSQL cannot be started, reached or stopped."""


class SchemaBehindError(DatabaseError):
    """The raw schema is older than this version of the loader."""


class SourceError(UsageError):
    """A source or write key does not exist, or its name is taken."""


class FileError(LoaderError):
    """A file cannot be read, or is not a file of events."""


class SpoolError(LoaderError):
    """Messages cannot be kept on the local disk."""


class UnavailableError(LoaderError):
    """Nothing can be taken at the moment; the same request may pass in a while."""


class TransformError(LoaderError):
    """dbt could not finish a model; the tables it did finish are complete."""
