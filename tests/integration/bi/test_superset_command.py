"""`loader bi superset` on marts without rows: its roles, its sources, its file and its import."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from loader.bi.assets import read_assets, read_mart
from loader.cli.help import EXAMPLES
from loader.raw.readers import add_reader, remove_reader
from loader.settings import Settings
from tests.conftest import Loader, loader_here
from tests.support.superset_stub import IMPORT, stub

MARTS = [*read_assets().datasets, "messages"]


def make_marts(connection: psycopg.Connection, schema: str) -> None:
    """Make the marts that the dashboards read, without rows."""
    connection.execute(f'create schema if not exists "{schema}"; create schema if not exists "{schema}_marts"')
    for name in set(MARTS):
        columns = ", ".join(f"{each['name']} {each['data_type']}" for each in read_mart(name)["columns"])
        connection.execute(f'create table "{schema}_marts"."{name}" ({columns})')


@pytest.fixture
def connection(settings: Settings) -> Iterator[psycopg.Connection]:
    """Return a connection to the test's database, which has marts of the source Iterable."""
    with psycopg.connect(settings.database_url, autocommit=True) as opened:
        make_marts(opened, "iterable")
        yield opened


@pytest.fixture
def reader_url(settings: Settings, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the URL of a reader, which the setting has."""
    made = add_reader(connection, settings.database_url, "superset_reader")
    assert made.statements == ""
    monkeypatch.setenv("LOADER_READER_URL", made.url)
    yield made.url
    remove_reader(connection, "superset_reader")


def read_archive(archive: bytes | Path) -> dict[str, Any]:
    """Return the files of an archive by path."""
    with zipfile.ZipFile(io.BytesIO(archive) if isinstance(archive, bytes) else archive) as opened:
        return {name.split("/", 1)[1]: yaml.load(opened.read(name), yaml.CSafeLoader) for name in opened.namelist()}


def test_the_file_names_the_reader_and_has_no_password(run_loader: Loader, reader_url: str, tmp_path: Path) -> None:
    """Superset asks for a password that has its mask. The first example of the help writes such a file."""
    path = tmp_path / "dashboards.zip"
    example = EXAMPLES["bi superset"][0].split()
    assert example[:4] == ["loader", "bi", "superset", "--zip"]
    done = run_loader("bi", "superset", "--zip", str(path))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{path}\n"
    files = read_archive(path)
    user, rest = reader_url.split(":", 2)[1].removeprefix("//"), reader_url.rsplit("@", 1)[1]
    assert files["databases/warehouse.yaml"]["sqlalchemy_uri"] == f"postgresql://{user}:XXXXXXXXXX@{rest}"
    assert reader_url.split(":")[2].split("@", maxsplit=1)[0].encode() not in path.read_bytes()
    dataset = files["datasets/warehouse/messages.yaml"]
    assert (dataset["schema"], dataset["catalog"]) == ("iterable_marts", rest.rsplit("/", 1)[1])


def test_a_repeated_import_sends_the_same_bytes(
    run_loader: Loader, reader_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive of the import has the password. The command prints the addresses of the dashboards."""
    monkeypatch.setenv("LOADER_SUPERSET_PASSWORD", "secret")
    with stub() as server:
        done = [run_loader("bi", "superset", "--url", server.url) for _ in range(2)]
    assert [each.returncode for each in done] == [0, 0], done[0].stderr
    assert f"{server.url}/superset/dashboard/iterable-revenue/\n" in done[0].stdout
    assert "Imported 5 dashboards" in done[0].stderr
    sent = [body[body.index(b"PK") :].rsplit(b"\r\n--", 1)[0] for path, _, body in server.requests if path == IMPORT]
    assert sent[0] == sent[1]
    assert read_archive(sent[0])["databases/warehouse.yaml"]["sqlalchemy_uri"] == reader_url


def test_the_primary_model_is_the_first_value_of_the_filter(
    run_loader: Loader, reader_url: str, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """Without the default model, the filter begins with the first model that there is. So it is with the currency."""
    connection.execute(
        "insert into iterable_marts.attributions (model, currency)"
        " values ('time_decay', 'EUR'), ('first_touch', 'USD'), ('first_touch', 'EUR')"
    )
    done = run_loader("bi", "superset", "--zip", str(tmp_path / "d.zip"))
    assert done.returncode == 0, done.stderr
    filters = read_archive(tmp_path / "d.zip")["dashboards/revenue.yaml"]["metadata"]["native_filter_configuration"]
    assert [each["defaultDataMask"]["filterState"] for each in filters if each["name"] == "Attribution model"] == [
        {"value": ["first_touch"], "label": "first_touch"}
    ]
    assert [each["defaultDataMask"]["filterState"] for each in filters if each["name"] == "Currency"] == [
        {"value": ["EUR"], "label": "EUR"}
    ]


def test_a_reader_imports_with_its_own_url(
    settings: Settings, reader_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A reader in DATABASE_URL needs no further setting, and knows the source by its schema."""
    monkeypatch.delenv("LOADER_READER_URL")
    done = loader_here(settings.model_copy(update={"database_url": reader_url}))(
        "bi", "superset", "--zip", str(tmp_path / "d.zip")
    )
    assert done.returncode == 0, done.stderr
    assert read_archive(tmp_path / "d.zip")["databases/warehouse.yaml"]["database_name"] == "Warehouse: iterable"


def test_each_of_two_sources_has_its_dashboards(
    run_loader: Loader, reader_url: str, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """A source must be named if there are two. The name of a source may have any characters."""
    name = 'Über "Shop" ☕ it\'s'
    connection.execute("insert into raw.sources (name, schema_name) values (%s, 'order')", [name])
    make_marts(connection, "order")
    connection.execute("grant usage on schema order_marts to superset_reader")
    connection.execute("grant select on all tables in schema order_marts to superset_reader")
    unnamed = run_loader("bi", "superset", "--zip", str(tmp_path / "none.zip"))
    assert unnamed.returncode == 2
    assert "Name the source with --source" in unnamed.stderr
    for source, path in (("Iterable", "one.zip"), (name, "two.zip")):
        done = run_loader("bi", "superset", "--source", source, "--zip", str(tmp_path / path))
        assert done.returncode == 0, done.stderr
    one, two = read_archive(tmp_path / "one.zip"), read_archive(tmp_path / "two.zip")
    assert two["dashboards/channels.yaml"]["dashboard_title"] == f"{name}: Channels"
    assert {each["schema"] for path, each in two.items() if path.startswith("datasets")} == {"order_marts"}
    uuids = [{each["uuid"] for each in files.values() if "uuid" in each} for files in (one, two)]
    assert uuids[0].isdisjoint(uuids[1])


def test_a_missing_reader_is_asked_for(run_loader: Loader, connection: psycopg.Connection) -> None:
    """The loader's role would let everybody in Superset change the warehouse."""
    done = run_loader("bi", "superset", "--zip", "d.zip")
    assert done.returncode == 2
    assert "Superset needs the URL of a reader. `loader reader add bi` makes a reader" in done.stderr


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://bi:secret@localhost/warehouse", "LOADER_READER_URL must look like postgresql://"),
        ("postgresql://localhost/warehouse", "The reader's URL lacks user, password."),
        ("postgresql://nobody_there:secret@localhost/warehouse", "The database has no role nobody_there"),
        ("postgresql://loader:secret@localhost/warehouse", "The role loader is no reader"),
    ],
)
def test_a_wrong_url_of_a_reader_is_refused(
    run_loader: Loader, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, url: str, message: str
) -> None:
    """The error names the setting or the role, and the next step. It has no password."""
    monkeypatch.setenv("LOADER_READER_URL", url)
    done = run_loader("bi", "superset", "--zip", "d.zip")
    assert done.returncode == 2
    assert message in done.stderr
    assert "secret" not in done.stderr


def test_a_reader_of_another_source_is_refused(
    run_loader: Loader, reader_url: str, connection: psycopg.Connection
) -> None:
    """The error names the marts."""
    connection.execute("revoke select on iterable_marts.messages, iterable_marts.attributions from superset_reader")
    done = run_loader("bi", "superset", "--zip", "d.zip")
    assert done.returncode == 2
    assert "cannot read iterable_marts.attributions, iterable_marts.messages. If these tables exist" in done.stderr


def test_without_marts_the_error_names_the_setting(
    run_loader: Loader, reader_url: str, connection: psycopg.Connection
) -> None:
    """Marts are missing after runs with LOADER_MARTS=false."""
    connection.execute("drop schema iterable_marts cascade")
    for arguments in ([], ["--source", "Iterable"]):
        done = run_loader("bi", "superset", "--zip", "d.zip", *arguments)
        assert done.returncode == 1
        assert "There are no marts" in done.stderr
        assert "LOADER_MARTS=true" in done.stderr


def test_a_password_with_special_characters_reaches_superset(
    run_loader: Loader, reader_url: str, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A URL quotes them, and so does the connection in Superset."""
    url = reader_url.replace(reader_url.split(":")[2].split("@", maxsplit=1)[0], "p%40ss%3Aw%2Frd%25%23%3F%20%27%22")
    monkeypatch.setenv("LOADER_READER_URL", url)
    monkeypatch.setenv("LOADER_SUPERSET_PASSWORD", "secret")
    with stub() as server:
        assert run_loader("bi", "superset", "--url", server.url).returncode == 0
    body = server.requests[-1][2]
    archive = read_archive(body[body.index(b"PK") :].rsplit(b"\r\n--", 1)[0])
    stored = psycopg.conninfo.conninfo_to_dict(archive["databases/warehouse.yaml"]["sqlalchemy_uri"])
    assert stored["password"] == "p@ss:w/rd%#? '\""


def test_the_password_of_superset_is_asked_for(run_loader: Loader, reader_url: str) -> None:
    """A script has no terminal to ask at."""
    done = run_loader("bi", "superset")
    assert done.returncode == 2
    assert "Set LOADER_SUPERSET_PASSWORD to the password of the user admin" in done.stderr


def test_a_file_and_an_address_together_are_refused(run_loader: Loader) -> None:
    """Both together would leave open which was meant."""
    done = run_loader("bi", "superset", "--zip", "d.zip", "--url", "http://localhost:8088")
    assert done.returncode == 2
    assert "Give one of them" in done.stderr


def test_the_error_of_an_unwritable_file_names_the_option(run_loader: Loader, reader_url: str, tmp_path: Path) -> None:
    """The error names the option."""
    done = run_loader("bi", "superset", "--zip", str(tmp_path / "missing" / "d.zip"))
    assert done.returncode == 1
    assert "Choose a file with --zip" in done.stderr
