"""The statements of a report, with values filled in."""

from datetime import date

from psycopg import sql

from loader.report.queries import fill_values


def test_values_are_quoted_as_sql() -> None:
    """A schema is an identifier, and a text is a literal."""
    filled = fill_values(
        "select '%', 100 %% 7 from %(marts)s.messages where day = %(day)s and model = %(model)s limit %(most)s\n",
        {"marts": sql.Identifier('my "shop"'), "day": date(2026, 3, 4), "model": "it's", "most": 7},
    )
    assert filled == (
        'select \'%\', 100 %% 7 from "my ""shop""".messages'
        " where day = '2026-03-04'::date and model = 'it''s' limit 7"
    )


def test_a_value_that_looks_like_a_parameter_stays_unchanged() -> None:
    """The name of a model may look like a parameter."""
    assert fill_values("%(model)s", {"model": "%(model)s"}) == "'%(model)s'"
