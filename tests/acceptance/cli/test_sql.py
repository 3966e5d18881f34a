"""`loader sql`: reads only, unless --write is given, and shows every value exactly."""

import csv
import io
import json

import psycopg
import pytest

from loader.settings import Settings
from tests.conftest import Loader
from tests.support.terminals import run_on_terminal


@pytest.mark.parametrize(
    "statement",
    [
        "drop table raw.events cascade",
        "insert into raw.sources (name, schema_name) values ('x', 'x')",
        "create table public.notes (note text)",
        "with gone as (delete from raw.sources returning id) select * from gone",
        "set transaction read write",
        "set session characteristics as transaction read write",
        "select set_config('transaction_read_only', 'off', false)",
        "select set_config('default_transaction_read_only', 'off', false)",
        "do $$ begin delete from raw.sources; end $$",
        "do $$ begin commit; end $$",
        "commit",
        "commit; drop table raw.events cascade",
        "select 1; commit; drop table raw.events cascade",
        "set transaction read write; drop table raw.events cascade",
    ],
)
def test_d8_a_query_changes_nothing(run_loader: Loader, settings: Settings, statement: str) -> None:
    """No statement in one line of SQL can leave the read-only transaction."""
    with psycopg.connect(settings.database_url) as connection:
        before = connection.execute("select * from raw.sources").fetchall()
        run_loader("sql", statement)
        refused = run_loader("sql", "create table public.notes (note text)")
        assert refused.returncode == 2
        assert "cannot execute CREATE TABLE in a read-only transaction" in refused.stderr
        assert "--write" in refused.stderr
        assert connection.execute("select * from raw.sources").fetchall() == before
        assert connection.execute("select to_regclass('raw.events'), to_regclass('public.notes')").fetchone() == (
            "raw.events",
            None,
        )


def test_d8_write_keeps_the_changes_of_a_statement(run_loader: Loader) -> None:
    """A statement without rows shows its effect, and the change is kept."""
    made = run_loader("sql", "--write", "create table public.notes (note text)")
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "CREATE TABLE\n")
    added = run_loader("sql", "--write", "--format", "csv", "insert into public.notes values ('kept') returning note")
    assert added.stdout == "note\nkept\n"
    assert run_loader("sql", "--format", "csv", "select note from public.notes").stdout == "note\nkept\n"
    assert run_loader("sql", "--write", "vacuum public.notes").returncode == 0


def test_d8_several_statements_need_write_and_show_each_result(run_loader: Loader) -> None:
    """Each result is shown."""
    refused = run_loader("sql", "select 1 as a; select 2 as b")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "A query is one statement" in refused.stderr
    both = run_loader("sql", "--write", "select 1 as a; create table public.t (n int); select 2 as b")
    assert both.stdout == "a\n-\n1\n\nb\n-\n2\n"
    assert both.stderr == "CREATE TABLE\n"
    # All statements are one transaction, so a failure undoes the earlier statements.
    failed = run_loader("sql", "--write", "drop table public.t; select 1 / 0")
    assert failed.returncode == 2
    assert run_loader("sql", "select * from public.t").returncode == 0


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("email_opened", "Tables with this name and a schema: iterable.email_opened."),
        ("EMAIL_OPENED", "Tables with this name and a schema: iterable.email_opened."),
        ("iterable.email_opend", "Similar names: iterable.email_opened"),
        ("email_opend", "Similar names: iterable.email_opened"),
        ("nothing_like_it", "with the schema of its source, such as iterable.email_opened"),
    ],
)
def test_d8_the_error_for_an_unknown_table_has_a_hint(served_loader: Loader, name: str, hint: str) -> None:
    """The error names the table with the schema of its source."""
    refused = served_loader("sql", f"select * from {name}")
    assert refused.returncode == 2
    assert "does not exist" in refused.stderr
    assert hint in refused.stderr


def test_d8_a_failure_in_the_middle_of_the_rows_gets_an_error(run_loader: Loader) -> None:
    """The error is the same as for a statement that fails at once."""
    failed = run_loader("sql", "--format", "csv", "select 1 / (3000 - n) from generate_series(1, 5000) as n")
    assert failed.returncode == 2
    assert "division by zero" in failed.stderr


def test_d8_format_lines_prints_a_line_for_each_column(run_loader: Loader) -> None:
    """`--format lines` numbers the rows."""
    shown = run_loader("sql", "--format", "lines", "select n as number, 'é' as letter from generate_series(1, 2) as n")
    assert shown.stdout.splitlines() == ["-- row 1", "number  1", "letter  é", "-- row 2", "number  2", "letter  é"]


def test_d8_a_terminal_gets_wide_tables_as_lines_and_limited_rows(settings: Settings) -> None:
    """Rows beyond the limit are announced, and a pipe gets all rows."""
    columns = ", ".join(f"'{n}' as column_number_{n}" for n in range(9))
    _, wide = run_on_terminal(settings, "sql", f"select {columns}")
    assert wide.splitlines()[:2] == ["-- row 1", "column_number_0  0"]
    _, table = run_on_terminal(settings, "sql", f"select {columns}", columns=200)
    assert table.splitlines()[0].split() == [f"column_number_{n}" for n in range(9)]
    _, long = run_on_terminal(settings, "sql", "select n from generate_series(1, 1000000) as n")
    assert len(long.splitlines()) == 2 + 100 + 1
    assert "--limit 0 shows all" in long
    _, chosen = run_on_terminal(settings, "sql", "--limit", "0", "select n from generate_series(1, 150) as n")
    assert len(chosen.splitlines()) == 2 + 150


def test_d8_a_pipe_gets_every_row(run_loader: Loader) -> None:
    """A limit applies only if it is given."""
    query = "select n from generate_series(1, 1234) as n"
    assert len(run_loader("sql", query).stdout.splitlines()) == 2 + 1234
    some = run_loader("sql", "--limit", "3", "--format", "csv", query)
    assert some.stdout == "n\n1\n2\n3\n"
    assert "more rows" in some.stderr
    assert run_loader("sql", "--limit", "1234", query).stderr == ""


def test_d8_values_are_exact(run_loader: Loader) -> None:
    """Documents and numbers keep their digits, and times beyond Python's range their years."""
    query = """
        select
            '{"a": 1.10, "b": 123456789012345678901234567890}'::jsonb as document,
            12345678901234567890.10 as number,
            true as flag,
            array[1.50, null] as list,
            '\\x00ff'::bytea as bytes,
            timestamptz '12026-01-02 03:04:05+00' as later,
            date '0044-03-15 BC' as earlier,
            timestamptz '2026-01-02 03:04:05.5+00' as moment,
            null as nothing
    """
    (row,) = csv.DictReader(io.StringIO(run_loader("sql", "--format", "csv", query).stdout))
    assert row == {
        "document": '{"a": 1.10, "b": 123456789012345678901234567890}',
        "number": "12345678901234567890.10",
        "flag": "true",
        "list": "[1.50,null]",
        "bytes": "\\x00ff",
        "later": "12026-01-02 03:04:05+00",
        "earlier": "0044-03-15 BC",
        "moment": "2026-01-02 03:04:05.500000+00:00",
        "nothing": "",
    }
    printed = run_loader("sql", "--format", "json", query).stdout
    assert '"document": {"a": 1.10, "b": 123456789012345678901234567890}' in printed
    assert '"number": 12345678901234567890.10' in printed
    (parsed,) = json.loads(printed)
    assert (parsed["flag"], parsed["list"], parsed["nothing"]) == (True, [1.5, None], None)
    assert parsed["moment"] == "2026-01-02T03:04:05.500000+00:00"
    assert run_loader("sql", query).returncode == 0


def test_c12_csv_is_exact_and_the_help_warns_of_formulas(run_loader: Loader) -> None:
    """No value is changed for a spreadsheet. The help warns of formulas."""
    texts = ["=1+1", "+1", "-1", "@x", 'a"b', "a\rb", "a\nb", " a ", "", "a,b"]
    values = ", ".join("E'" + text.encode("unicode_escape").decode() + "'" for text in texts)
    done = run_loader("sql", "--format", "csv", f"select {values}, null")
    assert list(csv.reader(io.StringIO(done.stdout, newline="")))[1] == [*texts, ""]
    assert done.stdout.endswith('" a ","","a,b",\n')
    assert "formula" in run_loader("sql", "--help").stdout
