"""The errors that the loader raises on purpose.

A message names the failure, the object and the next step. The command line prints the message after `Error:` and never
a traceback. The class has the exit code, so a script can tell wrong use (2) from failed work (1).
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
    """Work failed; the message names the failure, the object and the next step."""

    exit_code = 1


class UsageError(LoaderError):
    """A command got an argument or a setting that it cannot use."""

    exit_code = 2


class DatabaseError(LoaderError):
    """The database cannot be reached, is too old, or refuses a statement."""


class EmbeddedError(DatabaseError):
    """The embedded PostgreSQL cannot be started, reached or stopped."""


class SchemaBehindError(DatabaseError):
    """The raw schema is older than this version of the loader."""


class SourceError(UsageError):
    """A source or write key does not exist, or its name is in use."""


class ConfigurationError(LoaderError):
    """A destination cannot be used as it is configured: a secret or an address is missing or wrong."""


class FileError(LoaderError):
    """A file cannot be read, or is not a file of events."""


class SpoolError(LoaderError):
    """Messages cannot be kept on the local disk."""


class UnavailableError(LoaderError):
    """No event can be accepted at the moment; the same request may succeed later."""


class MartsError(LoaderError):
    """A report or dashboards cannot be made, because there are no marts."""


class SupersetError(LoaderError):
    """Superset cannot be reached, refuses the user, or refuses the dashboards."""


class TransformError(LoaderError):
    """dbt could not finish a model; the finished tables are complete."""
