"""The dashboards in a Superset: a repeated import, the figures of every chart, and the pages in a browser.

`make test-bi` installs Superset and runs these tests. `make test` does not run them.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from loader.bi.assets import read_assets
from loader.bi.bundle import asset_uuid
from loader.postgres.database import url_of_role
from loader.raw.readers import add_reader, remove_reader
from loader.sample.events import last_sunday
from loader.settings import Settings
from tests.bi.browser import Browser, find_chromium, opened_browser
from tests.bi.dashboard_pages import open_dashboard
from tests.bi.expected_figures import EXPECTED
from tests.bi.superset_process import PASSWORD, running_superset
from tests.bi.superset_session import Row, SupersetSession
from tests.conftest import Loader, MakeOnce, loader_here, own_database
from tests.support.sample_marts import NAMES, fill_sample_marts

ASSETS = read_assets()
CHARTS = ASSETS.charts()
REVENUE = {chart["key"] for row in ASSETS.dashboards["revenue"]["rows"] for chart in row["charts"]}
READER = "superset_test_reader"
# Characters that a URL, a format string or a shell could take for their own. Superset 6.1 decodes a password twice, so
# it has no `%` before two hexadecimal digits.
HARD_PASSWORD = "p@ss:w/rd %! #?&'\"$"
SECOND_SOURCE = 'My "Shop" ☕'
EMPTY_SOURCE, ONE_DAY_SOURCE = "Empty", "One day"
TOLERANCE = 1e-6


def fill(settings: Settings) -> None:
    """Fill the marts with a sample that ends last Sunday, because the dashboards begin with the last quarter."""
    fill_sample_marts(settings, last_sunday(datetime.now(UTC).date()))


@pytest.fixture(scope="module")
def warehouse(server: str, home: Path, make_once: MakeOnce, served_template: str) -> Iterator[Settings]:
    """Return settings of a database with two sources of the same rows, an empty source, and a source of one day."""
    make_once("bi_template", served_template, fill)
    with (
        own_database(server, home, "bi_template") as settings,
        psycopg.connect(settings.database_url, autocommit=True) as connection,
    ):
        add_reader(connection, settings.database_url, READER)
        day = "(select day from iterable_marts.messages group by day order by count(*) desc limit 1)"
        make_source(connection, SECOND_SOURCE, "order", "true")
        make_source(connection, EMPTY_SOURCE, "empty", "false")
        make_source(connection, ONE_DAY_SOURCE, "one_day", f"{{}}::date = {day}")
        connection.execute(f"alter role {READER} password '{HARD_PASSWORD.replace(chr(39), chr(39) * 2)}'")
        yield settings
        remove_reader(connection, READER)


def make_source(connection: psycopg.Connection, name: str, schema: str, condition: str) -> None:
    """Make a source with some rows of each mart of the source Iterable, for the reader.

    Args:
        connection: A connection of the loader's role.
        name: The source's name.
        schema: The source's schema.
        condition: The condition of the rows; `{}` stands for the time axis of a mart. A mart without one has all rows.
    """
    connection.execute("insert into raw.sources (name, schema_name) values (%s, %s)", [name, schema])
    connection.execute(f"create schema {schema}_marts")
    for mart, dataset in ASSETS.datasets.items():
        axis = dataset.get("main_dttm_col")
        chosen = condition.format(axis) if axis or "{}" not in condition else "true"
        connection.execute(f"create table {schema}_marts.{mart} as select * from iterable_marts.{mart} where {chosen}")
    connection.execute(f"grant usage on schema {schema}_marts to {READER}")
    connection.execute(f"grant select on all tables in schema {schema}_marts to {READER}")


@pytest.fixture(scope="module")
def marts(warehouse: Settings) -> Iterator[psycopg.Connection]:
    """Return a connection on which names without a schema are those of the marts."""
    with psycopg.connect(warehouse.database_url, autocommit=True) as connection:
        connection.execute("set search_path = iterable_marts; set timezone = 'UTC'")
        yield connection


@pytest.fixture(scope="module")
def superset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a Superset without dashboards."""
    with running_superset(tmp_path_factory.mktemp("superset") / "home") as url:
        yield url


@pytest.fixture(scope="module")
def loader(warehouse: Settings) -> Iterator[Loader]:
    """Return the command line with the reader's URL, whose password has special characters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOADER_READER_URL", url_of_role(warehouse.database_url, READER, HARD_PASSWORD))
        patch.setenv("LOADER_SUPERSET_PASSWORD", PASSWORD)
        yield loader_here(warehouse)


@pytest.fixture(scope="module")
def imported(superset: str, loader: Loader) -> list[str]:
    """Import the dashboards of the source Iterable, and return their addresses."""
    done = loader("bi", "superset", "--url", superset, "--source", "Iterable")
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(scope="module")
def session(superset: str, imported: list[str]) -> SupersetSession:
    """Return a session with Superset, after the import."""
    return SupersetSession(superset)


def is_chosen(column: str, value: str) -> dict[str, Any]:
    """Return the condition of a dashboard's filter with one chosen value."""
    return {"col": column, "op": "IN", "val": [value]}


def dashboard_conditions(key: str) -> list[dict[str, Any]]:
    """Return the conditions that the revenue dashboard adds to a chart."""
    if key not in REVENUE:
        return []
    chosen = {"model": "last_click", "currency": "USD"}
    return [is_chosen(name, value) for name, value in chosen.items() if name not in CHARTS[key].get("ignores", [])]


def plain(rows: list[Row]) -> list[Row]:
    """Return rows with numbers as floats, in an order that small differences of numbers do not change."""
    converted = [tuple(float(value) if isinstance(value, Decimal | int) else value for value in row) for row in rows]
    return sorted(converted, key=lambda row: [f"{each:.3f}" if isinstance(each, float) else str(each) for each in row])


def assert_equal_figures(found: list[Row], expected: list[Row]) -> None:
    """Compare the rows of a chart with those of the marts; the marts round rates to six decimals."""
    assert len(found) == len(expected)
    for one, two in zip(plain(found), plain(expected), strict=True):
        assert len(one) == len(two)
        for value, other in zip(one, two, strict=True):
            assert value == (pytest.approx(other, abs=TOLERANCE) if isinstance(other, float) else other), (one, two)


def uuid(key: str, schema: str = "iterable") -> str:
    """Return the UUID of a chart of a source."""
    return asset_uuid(schema, "chart", key)


@pytest.mark.parametrize("key", CHARTS)
def test_a_chart_shows_the_figures_of_the_marts(key: str, session: SupersetSession, marts: psycopg.Connection) -> None:
    """Superset runs the stored query of the chart as the reader, with the first values of the dashboard's filters."""
    expected = marts.execute(EXPECTED[key]).fetchall()
    assert expected
    assert any(value is not None for value in expected[0])
    assert_equal_figures(session.query(uuid(key), *dashboard_conditions(key)), expected)


def test_every_figure_belongs_to_a_chart() -> None:
    """A chart that was removed has no expected figure."""
    assert EXPECTED.keys() == CHARTS.keys()


def test_money_of_several_models_or_currencies_has_no_sum(session: SupersetSession) -> None:
    """A chart without the filters of its dashboard is empty instead of wrong."""
    assert session.query(uuid("revenue")) == [(None,)]
    assert session.query(uuid("revenue"), is_chosen("model", "last_click")) == [(None,)]
    assert session.query(uuid("conversions")) == [(None,)]
    assert {row[1] for row in session.query(uuid("revenue_per_thousand"))} == {None}


def test_a_click_rate_of_several_channels_is_empty(session: SupersetSession) -> None:
    """The channels divide by different counts."""
    assert session.query(uuid("email_click_rate"), without_own=True) == [(None,)]


def test_a_time_range_counts_the_messages_of_its_days(session: SupersetSession, marts: psycopg.Connection) -> None:
    """The end of a range is the first day that does not count."""
    [(first, end)] = marts.execute("select max(day) - 20, max(day) - 5 from messages").fetchall()
    days = {"col": "day", "op": "TEMPORAL_RANGE", "val": f"{first} : {end}"}
    counted = f"select sum(sends) from messages where channel = 'email' and day >= '{first}' and day < '{end}'"
    assert_equal_figures(session.query(uuid("emails_sent"), days), marts.execute(counted).fetchall())


def test_superset_shows_the_names_of_a_hostile_sender_unchanged(session: SupersetSession) -> None:
    """Superset runs no template in a value."""
    assert {*NAMES} <= {row[0] for row in session.query(uuid("all_campaigns"))}


def test_a_second_import_changes_nothing(superset: str, session: SupersetSession, loader: Loader) -> None:
    """The assets keep their ids and their content. Superset hides the password, so a query shows that it is there."""
    before, ids = session.export(), session.chart_ids()
    assert len([name for name in before if name.startswith("charts/")]) == len(CHARTS)
    assert HARD_PASSWORD not in "".join(before.values())
    done = loader("bi", "superset", "--url", superset, "--source", "Iterable")
    assert done.returncode == 0, done.stderr
    assert session.export() == before
    assert session.chart_ids() == ids
    assert session.query(uuid("emails_sent"))


def test_descriptions_of_columns_arrive(session: SupersetSession) -> None:
    """The description of a column is that of the mart, and the time axis is the one of the dataset's file."""
    [dataset] = [text for text in session.export().values() if "table_name: iterable_marts.messages\n" in text]
    assert "Sends less bounces of each message" in dataset
    assert "main_dttm_col: day" in dataset


def test_superset_imports_the_file_and_asks_for_the_password(
    session: SupersetSession, loader: Loader, tmp_path: Path
) -> None:
    """The second source has its dashboards beside the first."""
    path = tmp_path / "dashboards.zip"
    done = loader("bi", "superset", "--source", SECOND_SOURCE, "--zip", str(path))
    assert done.returncode == 0, done.stderr
    before = session.export()
    refused = session.import_file(path.read_bytes())
    assert refused.status_code == 422
    assert "Must provide a password for the database" in refused.text
    passwords = json.dumps({"databases/warehouse.yaml": HARD_PASSWORD})
    accepted = session.import_file(path.read_bytes(), passwords=passwords)
    assert accepted.ok, accepted.text
    after = session.export()
    assert before.items() <= after.items()
    assert len(after) - len(before) == len(CHARTS) + len(ASSETS.datasets) + len(ASSETS.dashboards) + 1
    assert session.query(uuid("emails_sent", "order")) == session.query(uuid("emails_sent"))


def test_a_wrong_password_of_the_reader_is_found_before_the_import(
    session: SupersetSession, warehouse: Settings, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Superset names the reason, and nothing changes."""
    before = session.export()
    monkeypatch.setenv("LOADER_READER_URL", url_of_role(warehouse.database_url, READER, "wrong"))
    done = loader("bi", "superset", "--url", session.url, "--source", "Iterable")
    assert done.returncode == 1
    assert f'The password provided for username "{READER}" is incorrect' in done.stderr
    assert session.export() == before


def test_a_wrong_password_of_superset_gets_an_error(
    superset: str, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the user and the setting."""
    monkeypatch.setenv("LOADER_SUPERSET_PASSWORD", "wrong")
    done = loader("bi", "superset", "--url", superset, "--source", "Iterable")
    assert done.returncode == 1
    assert "refuses the user admin. Check --user and LOADER_SUPERSET_PASSWORD" in done.stderr


def charts_of(name: str) -> list[str]:
    """Return the titles of the charts of a dashboard."""
    return [chart["slice_name"] for row in ASSETS.dashboards[name]["rows"] for chart in row["charts"]]


@pytest.fixture(scope="module")
def browser(session: SupersetSession) -> Iterator[Browser]:
    """Return a Chromium with a session of Superset; without Chromium, its tests are skipped."""
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("there is no Chromium on this machine, so no dashboard was opened in a browser")
    with opened_browser(chromium) as opened:
        opened.set_cookies(session.url, session.log_in_to_pages())
        yield opened


@pytest.mark.parametrize("name", ASSETS.dashboards)
def test_a_browser_draws_every_chart_of_a_dashboard(name: str, browser: Browser, imported: list[str]) -> None:
    """No chart has an error or lacks data, with the first values of the filters."""
    [address] = [each for each in imported if each.endswith(f"-{ASSETS.dashboards[name]['slug']}/")]
    open_dashboard(browser, address, len(charts_of(name)), width=1200)
    text = browser.evaluate("document.body.innerText")
    assert [title for title in charts_of(name) if title not in text] == []
    assert [each for each in ("No data", "No results", "NaN", "undefined", "error") if each in text] == []


@pytest.fixture(scope="module", params=[EMPTY_SOURCE, ONE_DAY_SOURCE])
def sparse(request: pytest.FixtureRequest, superset: str, imported: list[str], loader: Loader) -> tuple[str, list[str]]:
    """Import the dashboards of a source with little data, and return its name and the addresses."""
    done = loader("bi", "superset", "--url", superset, "--source", request.param)
    assert done.returncode == 0, done.stderr
    return request.param, done.stdout.split()


@pytest.mark.parametrize("name", ASSETS.dashboards)
def test_a_dashboard_of_no_data_or_of_one_day_is_drawn(
    name: str, browser: Browser, sparse: tuple[str, list[str]]
) -> None:
    """A chart without data says so, and no chart waits for a value of a filter."""
    source, addresses = sparse
    [address] = [each for each in addresses if each.endswith(f"-{ASSETS.dashboards[name]['slug']}/")]
    open_dashboard(browser, address, len(charts_of(name)), width=1200)
    text = browser.evaluate("document.body.innerText")
    assert [title for title in charts_of(name) if title not in text] == []
    assert [each for each in ("NaN", "undefined", "error") if each in text] == []
    has_data = browser.evaluate("!!document.querySelector('.dashboard-chart canvas, .dashboard-chart table')")
    assert has_data == (source == ONE_DAY_SOURCE)


def test_a_page_asks_no_other_host(browser: Browser, imported: list[str], superset: str) -> None:
    """The policy of this Superset forbids the picture in its navigation with which its makers count users."""
    name = "channels"
    [address] = [each for each in imported if each.endswith(f"-{ASSETS.dashboards[name]['slug']}/")]
    browser.requested.clear()
    open_dashboard(browser, address, len(charts_of(name)), width=1200, standalone=False)
    assert browser.requested
    others = [url for url in browser.requested.values() if not url.startswith((superset, "data:", "blob:"))]
    assert others == []
