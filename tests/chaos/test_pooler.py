"""A real pooler in transaction mode before the database: clients share its sessions and prepared statements."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from loader.postgres.database import Database, open_database
from loader.raw.sources import add_key
from loader.settings import Settings
from loader.transform.dbt import transform
from tests.support.collector_process import free_port
from tests.support.collector_thread import collecting
from tests.support.load import assert_landed, load, track
from tests.support.waiting import can_connect, wait_until

SOME = 400
NEW = 30


@pytest.fixture
def pooled(settings: Settings, tmp_path: Path) -> Iterator[Settings]:
    """Return the settings of a loader behind PgBouncer, which has fewer sessions than the loader opens connections."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if not program:
        pytest.skip("there is no PgBouncer on this machine")
    server = make_url(settings.database_url)
    port = free_port()
    configuration = tmp_path / "pgbouncer.ini"
    configuration.write_text(
        f"""
        [databases]
        * = host={server.host} port={server.port} user={server.username} password={server.password}
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = any
        pool_mode = transaction
        default_pool_size = 3
        ignore_startup_parameters = extra_float_digits
        """.replace("        ", "")
    )
    # PgBouncer refuses to run as root.
    become = ["--user", "nobody"] if os.getuid() == 0 else []
    url = server.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
    with (
        (tmp_path / "pgbouncer.log").open("wb") as log,
        subprocess.Popen([program, "--quiet", *become, str(configuration)], stdout=log, stderr=log) as pooler,
    ):
        try:
            wait_until(lambda: pooler.poll() is not None or can_connect(url), "the pooler")
            assert pooler.poll() is None, (tmp_path / "pgbouncer.log").read_text()
            yield settings.model_copy(update={"database_url": url, "spool": tmp_path / "spool", "processes": 1})
        finally:
            pooler.terminate()


def test_events_land_once_behind_a_pooler_without_the_spool(
    pooled: Settings, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asynchronous connections and threads meet sessions with other prepared statements. No event is spooled."""
    with database.begin() as connection:
        key = add_key(connection, "Iterable")
    with collecting(pooled) as collector, load(collector.port, key) as sent:
        # The thread lands new properties, and psycopg prepares a statement at its fifth use.
        for number in range(NEW):
            reply = collector.post("/v1/track", track(f"new {number}", **{f"property_{number}": number}), key=key)
            assert reply.status == 200
        sent.wait_for(SOME)
        sent.sent |= {f"new {number}" for number in range(NEW)}
    with database.connect(autocommit=True) as connection:
        assert_landed(connection, sent)
        assert connection.execute("select count(*) from raw.quarantine").fetchone() == (0,)
    assert set(sent.statuses) == {200}
    told = capsys.readouterr()
    assert "the database is away" not in told.out + told.err
    with open_database(pooled) as behind:
        assert not [table for table in transform(behind, pooled, select=["email_opened", "tracks"]) if table.error]
    with database.connect(autocommit=True) as connection:
        assert connection.execute("select count(*) from iterable.tracks").fetchone() == (len(sent.sent),)
