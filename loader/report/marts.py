"""Finds the marts that a report reads, and the variables with which the marts were made."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import psycopg
from psycopg import sql

from loader.errors import MartsError, SourceError
from loader.events.naming import schema_name
from loader.postgres.statements import read_statement
from loader.report.queries import Figure, fill_values, read_figure

_FIND = read_statement(__file__, "find")
_VARIABLES = read_statement(__file__, "variables")
_MODELS = read_statement(__file__, "models")
_LAST_DAY = read_statement(__file__, "last_day")

# The defaults of the variables. A reader cannot read the variables of the last run.
_TIME_ZONE = "UTC"
_MODEL = "last_click"


@dataclass(frozen=True)
class Marts:
    """The marts of one source.

    Attributes:
        source: The source's name for people. A reader knows the schema only.
        source_schema: The schema of the source's tables.
        time_zone: The zone of the marts' days; None if the role cannot read it.
        model: The attribution model that conversions are shown for.
    """

    source: str
    source_schema: str
    time_zone: str | None
    model: str

    @property
    def schema(self) -> sql.Identifier:
        """The schema of the marts, to be quoted."""
        return sql.Identifier(f"{self.source_schema}_marts")


def find_marts(connection: psycopg.Connection, source: str | None, *, is_reader: bool) -> Marts:
    """Return the marts of a source.

    Args:
        connection: An open transaction.
        source: The name or the schema of the source; None for the only source with marts.
        is_reader: The role cannot use the schema `raw`.

    Raises:
        MartsError: The source has no marts yet.
        SourceError: There is no such source, or several sources have marts and none was named.
    """
    schemas = [row["source_schema"] for row in read_figure(connection, _FIND).rows]
    names = {schema: schema for schema in schemas}
    if not is_reader:
        names = dict(connection.execute("select schema_name, name from raw.sources order by id").fetchall())
        schemas = [schema for schema in names if schema in schemas]
    schema = _choose(source, names, schemas)
    time_zone, model = None, None
    if not is_reader:
        [row] = read_figure(connection, fill_values(_VARIABLES, {"source_schema": schema})).rows
        time_zone, model = row["time_zone"], row["model"]
    found = Marts(names[schema], schema, time_zone, model or _MODEL)
    if model is None:
        models = [row["model"] for row in read_figure(connection, fill_values(_MODELS, {"marts": found.schema})).rows]
        if models and found.model not in models:
            return Marts(found.source, schema, time_zone, models[0])
    return found


def _choose(source: str | None, names: dict[str, str], schemas: Sequence[str]) -> str:
    """Return the schema of a name, among the sources and the sources with marts."""
    if source is not None:
        asked = [schema for schema, name in names.items() if source in {schema, name}]
        asked = asked or [schema for schema in names if schema == schema_name(source)]
        if not asked:
            known = ", ".join(names.values()) or "none"
            raise SourceError(f"There is no source {source}. The sources are: {known}.")
        if asked[0] not in schemas:
            raise _no_marts(names[asked[0]])
        return asked[0]
    if not schemas:
        raise _no_marts()
    if len(schemas) > 1:
        listed = ", ".join(names[schema] for schema in schemas)
        raise SourceError(f"Several sources have marts ({listed}). Name the source with --source.")
    return schemas[0]


def _no_marts(source: str = "") -> MartsError:
    of_source = f" of source {source}" if source else ""
    return MartsError(
        f"There are no marts{of_source} that this role can read. Run `loader transform` with LOADER_MARTS=true, then "
        "this command again."
    )


def find_newest_day(connection: psycopg.Connection, marts: Marts) -> date:
    """Return the last day with events that is over, or today if there are no events."""
    zone = marts.time_zone or _TIME_ZONE
    figure: Figure = read_figure(connection, fill_values(_LAST_DAY, {"marts": marts.schema, "time_zone": zone}))
    newest: date = figure.rows[0]["last_day"]
    return newest
