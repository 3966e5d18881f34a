"""From a text to a column's value: the project's casts on a real PostgreSQL, compared with the contract."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loader.events.shapes import Shape, type_of
from tests.conftest import open_settings, own_database
from tests.support.dbt_runs import PROJECT, parsed, run_dbt

TYPES = ("bigint", "numeric", "boolean", "timestamp with time zone", "integer", "numeric(10,2)", "double precision")
# A text's value in each type, and whether a run's first test marks the text for a closer check.
Cast = Callable[[Sequence[str]], list[dict[str, Any]]]

NUMBER = re.compile(r"[ \t\n\r\f\v]*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)[ \t\n\r\f\v]*")


@pytest.fixture(scope="module")
def connection(server: str, home: Path, raw_template: str) -> Iterator[psycopg.Connection]:
    """Return a connection in autocommit to a database with the raw schema."""
    with (
        own_database(server, home, raw_template) as settings,
        psycopg.connect(settings.database_url, autocommit=True) as opened,
    ):
        yield opened


@pytest.fixture(scope="module")
def cast(connection: psycopg.Connection, server: str, home: Path) -> Cast:
    """Return a function that casts texts as a run does: dbt compiles the macros once, and PostgreSQL runs the SQL."""
    settings = open_settings(f"{server.rsplit('/', 1)[0]}/{connection.info.dbname}", home)
    # These times are compared as text, because Python has no times before the year 1.
    columns = [
        f"({{{{ cast_value('given.text', '{kind}') }}}}){'::text' if kind.startswith('time') else ''} as \"{kind}\""
        for kind in TYPES
    ]
    texts = "unnest(%s::text[]) with ordinality as given (text, place) order by given.place"
    code, output = run_dbt(
        settings.database_url,
        PROJECT,
        *("--quiet", "compile", "--inline", f"select {', '.join(columns)} from {texts}"),
        *("--target-path", str(parsed(settings) / "target")),
    )
    assert code == 0, output
    # psycopg reads only the placeholder; every other per cent sign belongs to SQL.
    query = output.replace("%", "%%").replace("%%s::text[]", "%s::text[]")
    connection.execute("set timezone = 'UTC'; set datestyle = 'ISO, MDY'; set standard_conforming_strings = on")
    cursor = connection.cursor(row_factory=psycopg.rows.dict_row)
    return lambda texts: cursor.execute(query, (list(texts),)).fetchall()  # type: ignore[call-overload]


def number(text: str) -> Decimal | None:
    """Return the number of a text: digits, perhaps with a sign, a point and an exponent; None for other texts."""
    found = NUMBER.fullmatch(text)
    return Decimal(found[1]) if found else None


def whole(text: str) -> int | None:
    """Return the number of a text, if a bigint holds the number."""
    exact = number(text)
    return int(exact) if exact is not None and -(2**63) <= exact < 2**63 and exact % 1 == 0 else None


@pytest.mark.parametrize(
    "text", ["0x41C3", "0X41c3", "-0x1", " 0x1", "0b11", "0B1", "0o17", "0O7", "4_310_021", "1_0.5"]
)
def test_a13_a_text_with_a_prefix_or_an_underscore_is_no_number(cast: Cast, text: str) -> None:
    """PostgreSQL 16 and newer read such texts as numbers. In events they are identifiers."""
    [row] = cast([text])
    numbers = ("bigint", "numeric", "integer", "numeric(10,2)", "double precision")
    assert {kind: row[kind] for kind in numbers} == dict.fromkeys(numbers)


# Parts of numbers, other characters that PostgreSQL accepts, and characters that it never accepts.
_PIECES = (
    "0 1 7 00 42 4310021 9223372036854775807 . - + e E e2 E-3 _ 0x 0X 0o 0b x o b A f NaN Infinity -inf true , ' ١"
)
PIECES = st.sampled_from([*_PIECES.split(), " ", "\t", "\n", "\\"])
TEXTS = st.lists(PIECES, max_size=5).map("".join) | st.text(st.characters(exclude_characters="\0", codec="utf-8"))
# PostgreSQL limits the digits of a number, which is no matter of syntax.
SHORT = TEXTS.filter(lambda text: len(text) < 60 and not re.search("[eE][+-]?[0-9]{4}", text))


@given(st.lists(SHORT, min_size=1, max_size=30))
@example(["0x41C3", "4_310_021", "0b11", "+5", " 12.0 ", "1e2", "1200e-2", ".5", "5.", "007", "-0", "1e", "NaN", ""])
def test_a13_numbers_are_read_as_the_contract_says(cast: Cast, texts: list[str]) -> None:
    """A number is a sign, digits, a point and an exponent, and nothing else."""
    for text, row in zip(texts, cast(texts), strict=True):
        assert (row["bigint"], row["numeric"]) == (whole(text), number(text)), repr(text)


JSON_NUMBERS = st.from_regex(r"-?(?:0|[1-9][0-9]{0,21})(?:\.[0-9]{1,5})?(?:[eE][+-]?[0-9]{1,2})?", fullmatch=True)
TIMES = st.builds(
    "{}-{:02}-{:02}T{:02}:{:02}:{:02}{}".format,
    st.sampled_from(["0001", "1900", "2024", "9999"]),
    *(st.integers(0, limit) for limit in (13, 32, 25, 61, 61)),
    st.sampled_from(["", "Z", ".5Z", "+02:00", "-1559", "+16", "z", " BC"]),
)
VALUES = JSON_NUMBERS | (SHORT | TIMES).map(json.dumps) | st.sampled_from(["true", "false", '"0x41C3"', '"1_000"'])


@given(st.lists(VALUES, min_size=1, max_size=30))
def test_a13_a_column_of_the_type_found_holds_the_value(
    cast: Cast, connection: psycopg.Connection, values: list[str]
) -> None:
    """The types that landing and the compiled decoders record agree with the casts, value by value."""
    payloads = [f'{{"properties":{{"a":{value}}}}}'.encode() for value in values]
    query = "select payload::jsonb #>> '{properties,a}' from unnest(%s::text[]) as payload"
    texts = [text for (text,) in connection.execute(query, ([payload.decode() for payload in payloads],))]
    for payload, row in zip(payloads, cast(texts), strict=True):
        [(path, kind)] = Shape().unknown_fields(payload)
        assert kind == "text" or row[kind] is not None, payload
        for known in ("bigint", "numeric", "boolean", "timestamp with time zone"):
            shape = Shape([(path, [known])])
            for _ in range(10):
                shape.missed()
            try:
                shape.decode(payload)
            except msgspec.MsgspecError:
                continue
            assert row[known] is not None, (known, payload)


@given(SHORT)
def test_a13_a_string_never_has_the_type_of_a_number(text: str) -> None:
    """Only a JSON number makes a column of numbers."""
    assert type_of(text) in {"text", "timestamp with time zone"}
