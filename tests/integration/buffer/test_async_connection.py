"""The collector's asynchronous connections: rows in the server's format, COPY without a thread, and failures."""

import asyncio
import json
import select
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
import uvloop
from psycopg.pq import ExecStatus

import loader.buffer.batch_writer
from loader.buffer.async_connection import AsyncConnection
from loader.buffer.batch_writer import BatchWriter
from loader.buffer.connection_pool import CONNECTIONS
from loader.buffer.spool import Spool
from loader.errors import DatabaseError, UnavailableError
from loader.events.model import Delivery, Event
from loader.events.segment import parse_lines
from loader.postgres.connection import connect
from loader.postgres.database import Database
from loader.postgres.warehouse import Warehouse
from loader.raw.batches import LandingStatement, land_deliveries, landing_statement
from loader.raw.catalog import SchemaRegistry
from loader.raw.copy_format import COPY, END, FEW, HEADER, arrays_of, rows_of
from loader.raw.rescan import rescan
from loader.runtime import metrics
from loader.settings import Settings
from tests.support.load import track
from tests.support.tcp_proxy import Proxy, proxied
from tests.support.waiting import wait_until, waiting

NOW = datetime(2026, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)
SECONDS = 60.0


@pytest.fixture
def connection(database: Database) -> Iterator[psycopg.Connection]:
    """Return a connection in autocommit, beside the tested connections."""
    with database.connect(autocommit=True) as opened:
        yield opened


@pytest.fixture
def proxy(settings: Settings) -> Iterator[Proxy]:
    """Return a proxy in front of the test's database."""
    with proxied(settings.database_url) as between:
        yield between


def events(*ids: str, **properties: object) -> list[Event]:
    """Return events with these ids."""
    lines = b"\n".join(json.dumps(track(each, **properties)).encode() for each in ids)
    return [each for each in parse_lines(lines, 0) if isinstance(each, Event)]


def delivery(*ids: str, source: str = "iterable", **properties: object) -> Delivery:
    """Return a delivery of events with these ids."""
    return Delivery(source, "track", events(*ids, **properties), [], NOW)


def rows(*sent: Event) -> bytes:
    """Return the rows that COPY accepts for these events."""
    return b"".join([HEADER, rows_of("iterable", sent, NOW), END])


def ids(connection: psycopg.Connection) -> list[str]:
    """Return the ids of all events that have landed, in their order."""
    return [each for (each,) in connection.execute("select message_id from raw.events order by seq")]


def paths(connection: psycopg.Connection) -> list[str]:
    """Return the recorded paths of the properties, as text."""
    return [each for (each,) in connection.execute("select array_to_string(path, '.') from raw.properties order by 1")]


class Statements(NamedTuple):
    """Makes statements of events.

    Attributes:
        kind: `copy` or `insert`.
        generation: The generation of the schema registry that the events were compared with.
    """

    kind: str
    generation: bytes

    def of(self, *sent: Event) -> LandingStatement:
        """Return the statement that lands these events."""
        if self.kind == "copy":
            text = b"select raw.require_generation('%b'); %b" % (self.generation, COPY)
            return LandingStatement(text, copied=rows(*sent))
        arguments = [self.generation, *arrays_of({"iterable": sent}, NOW)]
        return LandingStatement(b"select raw.land($1, $2, $3, $4, $5, $6)", arguments)


@pytest.fixture(params=["copy", "insert"])
def statements(request: pytest.FixtureRequest, connection: psycopg.Connection) -> Statements:
    """Return both kinds of statements, for the present generation."""
    ((generation,),) = connection.execute("select raw.lock_generation()").fetchall()
    return Statements(request.param, generation.encode())


async def executed(asynchronous: AsyncConnection, statement: LandingStatement) -> Exception | None:
    """Run a statement, and return its error."""
    future: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    asynchronous.execute(statement, future.set_result)
    return await asyncio.wait_for(future, SECONDS)


def on_connection(url: str, work: Callable[[AsyncConnection], Awaitable[None]]) -> None:
    """Run a function with a connection whose time limit is checked regularly, as the writer does."""

    async def run() -> None:
        asynchronous = AsyncConnection(connect(url, autocommit=True), asyncio.get_running_loop(), SECONDS)

        async def look() -> None:
            while True:
                await asyncio.sleep(0.05)
                asynchronous.notice()

        looking = asyncio.create_task(look())
        try:
            await work(asynchronous)
        finally:
            looking.cancel()
            asynchronous.close()

    uvloop.run(run())


def knowing(connection: psycopg.Connection, *more: Delivery) -> SchemaRegistry:
    """Land enough equal events for a registry to find further equal events usual."""
    registry = SchemaRegistry()
    for number in range(3):
        land_deliveries(connection, registry, [delivery(*(f"{number}-{each}" for each in range(20)), n=1), *more])
    return registry


# Rows


def test_rows_keep_their_payload_id_and_time(
    settings: Settings, connection: psycopg.Connection, statements: Statements
) -> None:
    """The payload keeps its bytes, the id may have any letters, and the time is the event's or the batch's."""
    own = datetime(1999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    sent = [
        Event('{"a": "ü", "n": 1.10}'.encode(), 0, "ä-☃", "email_opened", None),
        Event(b'{"b": 12345678901234567890123}', 1, "two", None, own),
    ]

    async def work(asynchronous: AsyncConnection) -> None:
        assert await executed(asynchronous, statements.of(*sent)) is None

    on_connection(settings.database_url, work)
    query = "select source, collection, message_id, payload::text, received_at from raw.events order by seq"
    assert connection.execute(query).fetchall() == [
        ("iterable", "email_opened", "ä-☃", '{"a": "ü", "n": 1.10}', NOW),
        ("iterable", None, "two", '{"b": 12345678901234567890123}', own),
    ]


@pytest.mark.parametrize("more", [0, FEW])
def test_one_statement_takes_several_sources(settings: Settings, connection: psycopg.Connection, more: int) -> None:
    """Each event lands under its own source, in one transaction, by an insert or by a COPY."""
    registry = knowing(connection, delivery(*(f"s{each}" for each in range(20)), source="second", n=1))
    connection.execute("truncate raw.events")
    several = delivery(*(f"d{each:02}" for each in range(more)), n=1)
    batch = [delivery("a", n=1), delivery("b", source="second", n=2), delivery("c", n=3), several]
    statement = landing_statement(registry, batch)
    assert statement
    assert bool(statement.copied) == bool(more)

    async def work(asynchronous: AsyncConnection) -> None:
        assert await executed(asynchronous, statement) is None

    on_connection(settings.database_url, work)
    query = "select source, message_id from raw.events order by 2"
    others = [("iterable", event.message_id) for event in several.events]
    assert connection.execute(query).fetchall() == [("iterable", "a"), ("second", "b"), ("iterable", "c"), *others]
    assert connection.execute("select count(distinct load_xid) from raw.events").fetchone() == (1,)


def test_only_a_batch_of_known_properties_gets_a_landing_statement(connection: psycopg.Connection) -> None:
    """A new property, type or collection, and a refused message, need more than a COPY."""
    registry = knowing(connection)
    assert landing_statement(registry, [delivery("a", n=1)])
    assert landing_statement(registry, [delivery("a", n=1), delivery("b", other=1)]) is None
    assert landing_statement(registry, [delivery("a", n="text")]) is None
    assert landing_statement(registry, [delivery("a", source="second", n=1)]) is None
    assert landing_statement(registry, [delivery()]) is None


def test_an_event_of_an_uncommitted_collection_gets_no_landing_statement(connection: psycopg.Connection) -> None:
    """This holds however many events of a failed transaction were inspected before."""
    registry = SchemaRegistry()
    with registry.transaction(connection) as seen:
        for number in range(5):
            seen.record_fields("iterable", events(*(f"{number}-{each}" for each in range(20))))
        raise psycopg.Rollback
    assert landing_statement(registry, [delivery("a")]) is None


# A connection


def test_a_bad_row_fails_its_batch_alone(
    settings: Settings, connection: psycopg.Connection, statements: Statements
) -> None:
    """No event of that batch lands, however far the server has come. The connection accepts the next batch."""
    many = events(*map(str, range(2000)), text="x" * 2000)
    bad = Event(b'{"n": 1e200000}', 0, "bad", None, None)

    async def work(asynchronous: AsyncConnection) -> None:
        for place in (0, 1, 1000, 2000):
            assert isinstance(
                await executed(asynchronous, statements.of(*many[:place], bad, *many[place:])), psycopg.DatabaseError
            )
            assert not asynchronous.is_busy
        assert asynchronous.is_whole()
        assert await executed(asynchronous, statements.of(*events("good"))) is None

    on_connection(settings.database_url, work)
    assert ids(connection) == ["good"]


def test_a_notice_of_a_trigger_does_not_fail_a_batch(
    settings: Settings, connection: psycopg.Connection, statements: Statements
) -> None:
    """A trigger may raise notices."""
    connection.execute("""
        create function public.tell() returns trigger language plpgsql as
        $$ begin raise warning '%', repeat('told ', 1000); return new; end $$
    """)
    connection.execute("create trigger tell before insert on raw.events for each row execute function public.tell()")

    async def work(asynchronous: AsyncConnection) -> None:
        for each in "ab":
            assert await executed(asynchronous, statements.of(*events(each))) is None

    on_connection(settings.database_url, work)
    assert ids(connection) == ["a", "b"]


def test_a_connection_prepares_no_statement(
    settings: Settings, connection: psycopg.Connection, statements: Statements
) -> None:
    """Behind a pooler, another client may discard or replace the prepared statements of the session."""

    async def work(asynchronous: AsyncConnection) -> None:
        for each in "ab":
            assert await executed(asynchronous, statements.of(*events(each))) is None
            assert asynchronous._connection.execute("select * from pg_prepared_statements").fetchall() == []
            asynchronous._connection.pgconn.exec_(b"discard all")

    on_connection(settings.database_url, work)
    assert ids(connection) == ["a", "b"]


@pytest.mark.parametrize("used", [True, False])
def test_a_connection_that_ends_while_idle_fails_the_next_batch(
    settings: Settings, connection: psycopg.Connection, used: bool, statements: Statements
) -> None:
    """The batch has not landed, and the connection is known to be broken, whichever side ended it."""

    async def work(asynchronous: AsyncConnection) -> None:
        if used:
            assert await executed(asynchronous, statements.of(*events("before"))) is None
        connection.execute("""
            select pg_terminate_backend(pid, 10000) from pg_stat_activity
            where datname = current_database() and pid <> pg_backend_pid() and application_name = 'loader'
        """)
        assert isinstance(await executed(asynchronous, statements.of(*events("after"))), psycopg.Error)
        assert not asynchronous.is_whole()
        assert not asynchronous.is_busy

    on_connection(settings.database_url, work)
    assert "after" not in ids(connection)


@pytest.mark.parametrize("end", [AsyncConnection.cut, AsyncConnection.close])
def test_a_connection_closed_during_a_batch_fails_the_batch(
    proxy: Proxy, end: Callable[[AsyncConnection], None], statements: Statements
) -> None:
    """A COPY without an answer ends with its connection, even if its data is larger than the network's buffers."""

    async def work(asynchronous: AsyncConnection) -> None:
        for size in (10, 20_000_000):
            other = AsyncConnection(connect(proxy.url, autocommit=True), asyncio.get_running_loop(), SECONDS)
            proxy.deafen()
            copying = asyncio.create_task(executed(other, statements.of(*events("a", text="x" * size))))
            await asyncio.sleep(0.05)
            assert other.is_busy
            end(other)
            assert isinstance(await copying, psycopg.Error)
            other.close()
            proxy.hear()
        assert await executed(asynchronous, statements.of(*events("b"))) is None

    on_connection(proxy.url, work)


# The schema registry


@pytest.mark.parametrize("count", [FEW, FEW + 1])
def test_a_batch_checked_against_an_older_generation_does_not_land(
    settings: Settings, connection: psycopg.Connection, count: int
) -> None:
    """The transaction that checks the generation is the landing transaction, so no check afterwards is needed."""
    statement = landing_statement(knowing(connection), [delivery(*map(str, range(count)), n=1)])
    assert statement
    connection.execute("delete from raw.events")
    rescan(connection)

    async def work(asynchronous: AsyncConnection) -> None:
        assert "another generation" in str(await executed(asynchronous, statement))
        assert not asynchronous.is_busy
        assert asynchronous.is_whole()

    on_connection(settings.database_url, work)
    assert ids(connection) == []
    assert paths(connection) == []


def test_a_rescan_waits_for_a_statement_under_way(
    database: Database, connection: psycopg.Connection, statements: Statements
) -> None:
    """The rescan records the properties of a batch that read the previous generation, even after a kill."""
    knowing(connection)
    connection.execute("delete from raw.events")
    statement = statements.of(*events("late", n=1))
    with (
        database.connect(autocommit=True) as scanner,
        database.connect() as collector,
        ThreadPoolExecutor(1) as beside,
    ):
        if statement.copied:
            guard, copy_text = statement.text.decode().split("; ")
            collector.execute(guard)  # type: ignore[call-overload]
            with collector.cursor().copy(copy_text) as copy:  # type: ignore[call-overload]
                copy.write(statement.copied)
        else:
            collector.execute("select 1")
            formats = [1] * len(statement.arguments)
            done = collector.pgconn.exec_params(statement.text, statement.arguments, param_formats=formats)
            assert done.status == ExecStatus.TUPLES_OK
        rescanning = beside.submit(rescan, scanner)
        wait_until(lambda: paths(connection) == [], "the record to be made again, of no events")
        # A rescan that does not wait would end within this time.
        with pytest.raises(TimeoutError):
            rescanning.result(timeout=0.3)
        collector.commit()
        rescanning.result(timeout=SECONDS)
    assert paths(connection) == ["properties.n"]


# The writer


class Connecting:
    """Opens connections while it is allowed to."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.opened: list[psycopg.Connection] = []
        self.most = 1000

    def __call__(self) -> psycopg.Connection:
        """Open a connection."""
        if len(self.opened) >= self.most:
            raise DatabaseError("The database grants no more connections.")
        self.opened.append(connect(self.url, autocommit=True, seconds=2))
        return self.opened[-1]


def writing(
    connecting: Connecting,
    folder: Path,
    work: Callable[[BatchWriter], Awaitable[None]],
    *,
    commit_seconds: float = SECONDS,
    spool_bytes: int = 10**9,
    is_warm: bool = True,
) -> None:
    """Run a function with a writer, which is warmed up before by default, and stop the writer in order."""

    async def run() -> None:
        warehouse = Warehouse()
        writer = BatchWriter(
            connecting,
            Spool(folder, spool_bytes, warehouse),
            warehouse,
            queue_bytes=10**8,
            commit_seconds=commit_seconds,
        )
        await writer.start()
        try:
            assert await writer.reached_database(SECONDS)
            if is_warm:
                await warm_up(writer)
            await asyncio.wait_for(work(writer), SECONDS)
        finally:
            await asyncio.wait_for(writer.stop(), SECONDS)

    uvloop.run(run())


async def until(condition: Callable[[], bool]) -> None:
    """Run the event loop until a condition holds."""
    while not condition():
        await asyncio.sleep(0.01)


async def warm_up(writer: BatchWriter) -> None:
    """Write until events are usual and every connection is open."""
    for number in range(3):
        await writer.write(delivery(*(f"warm-{number}-{each}" for each in range(20)), n=1))
    await until(lambda: len(writer._pool) == CONNECTIONS)


def since(connection: psycopg.Connection, connecting: Connecting, moment: datetime) -> list[str]:
    """Return the last statement of each of the writer's connections that had a statement after a given time."""
    pids = [each.info.backend_pid for each in connecting.opened[1:] if not each.closed]
    query = "select query from pg_stat_activity where pid = any(%s) and query_start > %s"
    return [each for (each,) in connection.execute(query, (pids, moment))]


@pytest.mark.parametrize(("count", "statement"), [(FEW, b"select raw.land("), (FEW + 1, b"select raw.require_gener")])
def test_events_with_known_properties_land_by_one_statement_in_one_transaction(
    settings: Settings, connection: psycopg.Connection, tmp_path: Path, count: int, statement: bytes
) -> None:
    """Events that arrive together leave together, and the connection runs only that statement."""
    connecting = Connecting(settings.database_url)

    async def work(writer: BatchWriter) -> None:
        (moment,) = connection.execute("select clock_timestamp()").fetchall()[0]
        parts = [range(number, min(number + 10, count)) for number in range(0, count, 10)]
        sending = [delivery(*(f"u{number}" for number in part), n=part.start) for part in parts]
        await asyncio.gather(*map(writer.write, sending))
        [sent] = since(connection, connecting, moment)
        assert sent.startswith(statement.decode())

    writing(connecting, tmp_path, work)
    query = "select count(*), count(distinct load_xid), count(distinct received_at) from raw.events"
    assert connection.execute(f"{query} where message_id like 'u%'").fetchone() == (count, 1, 1)


@pytest.mark.parametrize("hold_seconds", [SECONDS, 0.1])
def test_a_batch_leaves_when_as_many_deliveries_wait_as_are_under_way(
    settings: Settings,
    connection: psycopg.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hold_seconds: float,
) -> None:
    """A smaller batch would cost the database as much. But a batch does not wait long for a blocked batch."""
    monkeypatch.setattr(loader.buffer.batch_writer, "_HOLD_SECONDS", hold_seconds)
    connecting = Connecting(settings.database_url)

    async def waited_for(count: int) -> None:
        await until(lambda: waiting(connection) == count)

    async def work(writer: BatchWriter) -> None:
        answers: list[UnavailableError | None] = []

        def submit(count: int) -> None:
            for _ in range(count):
                writer.submit(delivery(f"u{next(numbers)}", n=1), answers.append)

        numbers = count()
        with connection.transaction():
            connection.execute("lock table raw.events in share row exclusive mode")
            submit(3)
            await waited_for(1)
            submit(2)
            if hold_seconds == SECONDS:
                for _ in range(10):
                    await asyncio.sleep(0.01)
                await waited_for(1)
                submit(1)
            await waited_for(2)
        await until(lambda: len(answers) == (6 if hold_seconds == SECONDS else 5))
        assert not any(answers)

    writing(connecting, tmp_path, work)
    query = "select array_agg(message_id order by seq) from raw.events where message_id like 'u%' group by load_xid"
    batches = sorted(each for (each,) in connection.execute(query))
    assert batches == [["u0", "u1", "u2"], ["u3", "u4", "u5"] if hold_seconds == SECONDS else ["u3", "u4"]]


def test_a_full_batch_leaves_while_further_requests_are_read(
    settings: Settings, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """The database would have nothing to do while the event loop reads the requests of many senders."""
    connecting = Connecting(settings.database_url)

    async def work(writer: BatchWriter) -> None:
        answers: list[UnavailableError | None] = []
        full = writer._backlog.full
        for under_way in (full, 2 * full, CONNECTIONS * full):
            for number in range(full):
                writer.submit(delivery(f"u{under_way}-{number}", n=1), answers.append)
            assert writer._backlog.under_way == under_way
        assert len(writer._backlog) == full
        await until(lambda: len(answers) == 3 * full)
        assert not any(answers)

    writing(connecting, tmp_path, work)
    query = "select count(*) from raw.events where message_id like 'u%' group by load_xid"
    assert len(connection.execute(query).fetchall()) == 3


def test_no_further_connection_is_opened_while_a_table_is_locked(
    settings: Settings, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """Each further connection would wait for the lock on the server, even after its client has given up."""
    connecting = Connecting(settings.database_url)

    async def work(writer: BatchWriter) -> None:
        with connection.transaction():
            connection.execute("lock table raw.events in access exclusive mode")
            await until(lambda: len(writer._pool) == CONNECTIONS)
            # Longer than the time limit of the database.
            await asyncio.sleep(0.5)
            assert len(connecting.opened) == 1 + CONNECTIONS
            assert waiting(connection) == 0
        await warm_up(writer)

    writing(connecting, tmp_path, work, commit_seconds=0.2, is_warm=False)


def test_with_one_permitted_connection_the_thread_lands_the_events(
    settings: Settings, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """A database that permits one connection is not away: no event is spooled or lands twice."""
    connecting = Connecting(settings.database_url)
    connecting.most = 1

    async def work(writer: BatchWriter) -> None:
        for number in range(20):
            await writer.write(delivery(str(number), n=1))
            assert not writer.spooling

    writing(connecting, tmp_path, work, is_warm=False)
    assert ids(connection) == [str(number) for number in range(20)]


def test_broken_connections_cost_no_event_and_are_replaced(
    settings: Settings, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """A pooler that ends idle connections does not send events to the spool."""
    connecting = Connecting(settings.database_url)

    async def work(writer: BatchWriter) -> None:
        for broken in connecting.opened[1:]:
            connection.execute("select pg_terminate_backend(%s, 10000)", (broken.info.backend_pid,))
        await asyncio.gather(*(writer.write(delivery(f"u{number}", n=1)) for number in range(5)))
        await until(lambda: len(connecting.opened) > 2 * CONNECTIONS)
        assert not writer.spooling

    writing(connecting, tmp_path, work)
    assert sorted(each for each in ids(connection) if each.startswith("u")) == [f"u{number}" for number in range(5)]


@pytest.mark.parametrize("busy", [True, False])
def test_a_reset_right_after_the_servers_last_message_is_noticed(
    proxy: Proxy, connection: psycopg.Connection, tmp_path: Path, busy: bool
) -> None:
    """If both arrive at once, libuv reports only the first.

    The present and the next batch get an answer all the same.
    """
    connecting = Connecting(proxy.url)

    async def work(writer: BatchWriter) -> None:
        proxy.resetting = True
        with connection.transaction():
            if busy:
                connection.execute("lock table raw.events in exclusive mode")
            under_way = [asyncio.create_task(writer.write(delivery("under way", n=1)))] if busy else []
            await until(lambda: waiting(connection) == len(under_way))
            found = [each for each in writer._pool._connections if each.is_busy == busy]
            assert len(found) == (1 if busy else CONNECTIONS)
            for each in found:
                # From here to the reset, the event loop does not run.
                connection.execute("select pg_terminate_backend(%s, 10000)", (each._connection.info.backend_pid,))
                ended = select.poll()
                ended.register(each._socket, 0)
                assert ended.poll(SECONDS * 1000)
        await asyncio.gather(*under_way, *(writer.write(delivery(f"next {each}", n=1)) for each in range(5)))
        await until(lambda: len(writer._pool) == CONNECTIONS)

    writing(connecting, tmp_path, work)
    landed = ids(connection)
    assert {f"next {each}" for each in range(5)} | ({"under way"} if busy else set()) <= set(landed)


def test_a_batch_on_a_connection_is_answered_after_the_thread_times_out(
    proxy: Proxy, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """The database does not answer. A connection that is no longer used is cut in its time too."""
    connecting = Connecting(proxy.url)

    async def work(writer: BatchWriter) -> None:
        proxy.deafen()
        unusual = asyncio.create_task(writer.write(delivery("unusual", other=1)))
        await asyncio.sleep(0.3)
        usual = asyncio.create_task(writer.write(delivery("usual", n=1)))
        await unusual
        assert writer.spooling
        await usual
        proxy.hear()
        assert await writer.reached_database(SECONDS)

    writing(connecting, tmp_path, work, commit_seconds=1.0)
    assert {"unusual", "usual"} <= set(ids(connection))


def test_a_batch_waits_once_for_a_database_that_does_not_answer(
    proxy: Proxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A batch that has waited for a connection in vain goes to the spool without another attempt."""
    connecting = Connecting(proxy.url)

    async def work(writer: BatchWriter) -> None:
        proxy.deafen()
        await writer.write(delivery("usual", n=1))
        assert writer.spooling

    writing(connecting, tmp_path, work, commit_seconds=0.5)
    told = capsys.readouterr()
    assert (told.out + told.err).count("The database has not answered a batch in time.") == 1


def test_a_failed_answer_does_not_stop_the_other_answers_of_its_batch(
    settings: Settings, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """The other senders of the batch get their answers, and the batch's bytes no longer count as waiting."""
    connecting = Connecting(settings.database_url)

    async def work(writer: BatchWriter) -> None:
        answers: list[UnavailableError | None] = []

        def fail(error: UnavailableError | None) -> None:
            raise RuntimeError(error)

        for number in range(3):
            writer.submit(delivery(f"fail-{number}", n=1), fail)
            writer.submit(delivery(f"good-{number}", n=1), answers.append)
        await until(lambda: len(answers) == 3)
        assert answers == [None] * 3
        await writer.write(delivery("last", n=1))
        assert metrics.registry.get_sample_value("loader_queue_bytes") == 0

    writing(connecting, tmp_path, work)


def test_waiting_events_with_new_properties_share_commits(
    settings: Settings, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """Many such events need no more transactions than the thread can begin."""
    connecting = Connecting(settings.database_url)

    async def work(writer: BatchWriter) -> None:
        with connection.transaction():
            connection.execute("lock table raw.generation in access exclusive mode")
            tasks = []
            for number in range(50):
                tasks.append(asyncio.create_task(writer.write(delivery(f"u{number}", **{f"new{number}": 1}))))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    writing(connecting, tmp_path, work)
    query = "select count(*), count(distinct load_xid) <= 3 from raw.events where message_id like 'u%'"
    assert connection.execute(query).fetchone() == (50, True)


@pytest.mark.parametrize("away", [False, True])
def test_a_rescan_that_races_with_connections_loses_no_property(
    proxy: Proxy, connection: psycopg.Connection, tmp_path: Path, away: bool
) -> None:
    """Events that were usual by a replaced registry are recorded again before their senders get answers."""
    connecting = Connecting(proxy.url)

    async def work(writer: BatchWriter) -> None:
        await asyncio.to_thread(connection.execute, "delete from raw.events")
        await asyncio.to_thread(rescan, connection)
        # These events landed by the previous registry.
        await asyncio.gather(*(writer.write(delivery(f"u{number}", n=1)) for number in range(50)))
        assert await asyncio.to_thread(paths, connection) == ["properties.n"]
        if away:
            proxy.stop()
            await writer.write(delivery("spooled", other=1))
            proxy.start()
            assert await writer.reached_database(SECONDS)

    writing(connecting, tmp_path, work)
    assert set(paths(connection)) >= {"properties.n"}
