"""The schema registry records the properties of events in the landing transaction, once, with other loaders at work."""

import json
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from loader.events.segment import parse_lines
from loader.events.shapes import TRACKED_PROPERTIES, type_of
from loader.files.load import Load
from loader.postgres.database import Database
from loader.raw.catalog import SchemaRegistry, lock_sources
from loader.raw.landing import LandingResult, land
from loader.raw.rescan import rescan
from loader.raw.retry import open_messages, retry
from tests.conftest import Loader
from tests.support.waiting import wait_until

# A number that exceeds PostgreSQL's range, in valid JSON.
TOO_LARGE = b"1e200000"

Rows = list[tuple[object, ...]]


def call(message_id: str, properties: object, *, event: str = "Email Opened", context: object = None) -> bytes:
    """Return a track call as a line."""
    whole = {"type": "track", "event": event, "userId": "u", "messageId": message_id, "properties": properties}
    return json.dumps(whole | ({} if context is None else {"context": context})).encode()


@pytest.fixture
def connection(database: Database) -> Iterator[psycopg.Connection]:
    """Return a connection in autocommit, like the connections of the loader's workers."""
    with database.connect(autocommit=True) as opened:
        yield opened


def land_lines(
    connection: psycopg.Connection, lines: Iterable[bytes], registry: SchemaRegistry | None = None
) -> LandingResult:
    """Land lines in a separate transaction, with the given registry."""
    with (registry or SchemaRegistry()).transaction(connection) as changes:
        return land(connection, "iterable", "file", parse_lines(b"\n".join(lines), 0), changes, path="file")


def properties(connection: psycopg.Connection, columns: str = "collection, path, types") -> Rows:
    """Return the recorded properties, in the order of their first events."""
    return connection.execute(f"select {columns} from raw.properties order by number").fetchall()


def collections(connection: psycopg.Connection, columns: str = "source, collection, event, first_event_id") -> Rows:
    """Return the recorded collections, in the order of their first events."""
    return connection.execute(f"select {columns} from raw.collections order by number").fetchall()


def test_more_collections_than_are_remembered_can_land(
    connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Collections that were forgotten to make room are read again when they land, even beside new collections."""
    monkeypatch.setattr("loader.raw.catalog._REMEMBERED", 2)
    registry = SchemaRegistry()
    for round_, names in enumerate(["ab", "bc", "abc", "c"]):
        landed = land_lines(connection, [call(f"{name}{round_}", {"a": 1}, event=name) for name in names], registry)
        assert landed.rows == len(names)
    assert [row[0] for row in collections(connection, "collection")] == ["a", "b", "c"]


def test_landing_records_the_collections_and_properties_of_events(connection: psycopg.Connection) -> None:
    """Each collection and each path below properties and context is recorded once, in order, with column and types."""
    first = {"campaignId": 1, "email": "a@b.c", "dataFields": {"at": "2019-07-08T18:33:25Z", "tags": [1]}, "no": None}
    land_lines(
        connection,
        [
            call("m1", first, event="emailOpened", context={"traits": {"email": "a@b.c"}}),
            call("m2", {"campaignId": 12.5, "opened": True, "empty": {}}, event="Email Opened"),
            call("m3", {}, event="日本語"),
            b'{"type":"identify","userId":"u","messageId":"m4","traits":{"a":1}}',
        ],
    )
    assert collections(connection) == [
        ("iterable", "email_opened", "emailOpened", "m1"),
        ("iterable", "", "日本語", "m3"),
    ]
    assert properties(connection, "path, column_name, types, first_event_id") == [
        (["properties", "campaignId"], "campaign_id", ["bigint", "numeric"], "m1"),
        (["properties", "email"], "email", ["text"], "m1"),
        (["properties", "dataFields", "at"], "data_fields_at", ["timestamp with time zone"], "m1"),
        (["properties", "dataFields", "tags"], "data_fields_tags", ["text"], "m1"),
        (["context", "traits", "email"], "context_traits_email", ["text"], "m1"),
        (["properties", "opened"], "opened", ["boolean"], "m2"),
    ]


def test_known_properties_are_not_recorded_again(connection: psycopg.Connection) -> None:
    """A process that knows the properties, or finds them recorded, writes nothing. A new type is added."""
    registry = SchemaRegistry()
    land_lines(connection, [call("m1", {"a": 1, "b": "x"})], registry)
    before = properties(connection, "xmin, number, digest")
    for each in (registry, SchemaRegistry()):
        land_lines(connection, [call(f"m{i}", {"a": i, "b": "y"}) for i in range(100)], each)
        assert properties(connection, "xmin, number, digest") == before
    land_lines(connection, [call("m2", {"a": True})], registry)
    assert properties(connection, "path[2], types, first_event_id") == [
        ("a", ["bigint", "boolean"], "m1"),
        ("b", ["text"], "m1"),
    ]


def test_properties_of_a_rolled_back_transaction_are_recorded_again(connection: psycopg.Connection) -> None:
    """Properties that were not committed are recorded by the next event with them, even in the same process."""
    registry = SchemaRegistry()
    with suppress(ZeroDivisionError), registry.transaction(connection) as changes:
        land(connection, "iterable", "file", parse_lines(call("m1", {"a": 1}), 0), changes)
        raise ZeroDivisionError
    with registry.transaction(connection) as changes:
        land(connection, "iterable", "file", parse_lines(call("m2", {"a": 1}), 0), changes)
        raise psycopg.Rollback
    assert (collections(connection), properties(connection)) == ([], [])
    land_lines(connection, [call("m3", {"a": 1})], registry)
    assert collections(connection, "first_event_id") == [("m3",)]
    assert properties(connection, "path, first_event_id") == [(["properties", "a"], "m3")]


def test_a_refused_event_records_no_properties(connection: psycopg.Connection) -> None:
    """The properties of a refused event are recorded when the corrected message lands from the quarantine."""
    bad = call("m1", {"lost": 0}).replace(b"0}", TOO_LARGE + b"}")
    land_lines(connection, [bad, call("m2", {"kept": 1})])
    assert properties(connection, "path[2]") == [("kept",)]
    [outcome] = retry(connection, open_messages(connection), bad.replace(TOO_LARGE, b"1.5"))
    assert (outcome.landed, outcome.refused) == (1, 0)
    assert properties(connection, "path[2], types") == [("kept", ["bigint"]), ("lost", ["numeric"])]


def test_loaders_with_the_same_new_properties_do_not_deadlock(database: Database, tmp_path: Path) -> None:
    """Two loads of several workers, with the same new properties in every chunk, come to an end.

    The first chunk takes longest, because of rows that the database refuses. So the others are ready to commit before
    it.
    """
    files = []
    for i in range(2):
        files.append(tmp_path / f"{i}.ndjson")
        lines = [call(f"{i}-{j}", {"pad": "x" * 1000, "same": 1, f"key{j % 50}": 0}) for j in range(4000)]
        lines[::100] = [line.replace(b"0}", TOO_LARGE + b"}") for line in lines[::100]]
        lines += [call(f"{i}-{j}", {"same": "x", f"key{j % 50}": "x" * 20_000}) for j in range(600)]
        files[i].write_bytes(b"\n".join(lines))
    outcomes: list[str] = []

    def load(path: Path) -> None:
        with database.connect(autocommit=True) as connection:
            load = Load(database.url, connection, "iterable", workers=3, lock_wait=database.lock_wait)
            outcomes.extend(f.outcome for f in load.run([str(path)]))

    threads = [threading.Thread(target=load, args=(path,), daemon=True) for path in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert outcomes == ["loaded", "loaded"]
    with database.connect() as connection:
        assert connection.execute("select count(*) from raw.events").fetchone() == (2 * (4600 - 40),)
        assert {row[0] for row in properties(connection, "path[2]")} == {"pad", "same", *(f"key{k}" for k in range(50))}


TRACKED = 300


@pytest.fixture
def few_properties(monkeypatch: pytest.MonkeyPatch) -> None:
    """Track few properties of a collection, and not the 10,000 that Segment keeps."""
    assert TRACKED_PROPERTIES == 10_000
    monkeypatch.setattr("loader.raw.catalog.TRACKED_PROPERTIES", TRACKED)


@pytest.mark.usefixtures("few_properties")
def test_no_more_properties_are_tracked_than_segment_keeps(connection: psycopg.Connection) -> None:
    """The limit holds for all loaders. The collection is marked, and new types of tracked properties still count."""
    first, second = SchemaRegistry(), SchemaRegistry()
    land_lines(connection, [call("m0", {"key0": 1})], second)
    land_lines(connection, [call(f"m{i}", {f"key{i}": 1}) for i in range(TRACKED - 2)], first)
    assert collections(connection, "untracked") == [(False,)]
    land_lines(connection, [call("x", {f"key{i}": 1 for i in range(TRACKED - 4, TRACKED + 1)})], second)
    assert collections(connection, "untracked") == [(True,)]
    for registry in (first, second, SchemaRegistry()):
        land_lines(connection, [call("y", {"yet another": 1, f"key{TRACKED - 1}": 1})], registry)
    land_lines(connection, [call("z", {f"key{TRACKED - 5}": "x"})], second)
    rows = properties(connection, "path[2], types")
    assert [row[0] for row in rows] == [f"key{i}" for i in range(TRACKED)]
    assert rows[TRACKED - 5][1] == ["bigint", "text"]


def test_thousands_of_shapes_are_all_recorded(connection: psycopg.Connection) -> None:
    """Thousands of collections with different events lose none of their properties."""
    registry = SchemaRegistry()
    for start in range(0, 2000, 500):
        lines = [
            call(f"m{i}", {f"key{i}": 1, f"key{i // 2}": 2}, event="Order Placed") for i in range(start, start + 500)
        ]
        lines += [call(f"n{i}", {"a": 1}, event=f"event {i}") for i in range(start, start + 500)]
        land_lines(connection, lines, registry)
    rows = properties(connection, "collection, path[2]")
    assert sorted(rows) == sorted(
        [("order_placed", f"key{i}") for i in range(2000)] + [(f"event_{i}", "a") for i in range(2000)]
    )
    assert len(collections(connection)) == 2001


HOSTILE = [
    "",
    "__proto__",
    '"',
    "'",
    "\\",
    "a.b",
    "a\nb",
    "{}",
    "{a,b}",
    "NULL",
    "%s",
    "$1",
    "🎉",
    "é",
    "x" * 10_000,
    "\x01",
]


def test_keys_of_any_name_are_recorded_as_they_are(connection: psycopg.Connection) -> None:
    """Quotes, backslashes, control characters and the empty key each give a path."""
    registry = SchemaRegistry()
    for i in range(3):
        land_lines(connection, [call(f"m{i}-{j}", {key: {key: 1}}) for j, key in enumerate(HOSTILE * 20)], registry)
    assert properties(connection, "path") == [(["properties", key, key],) for key in HOSTILE]
    assert connection.execute("select count(distinct digest) from raw.properties").fetchone() == (len(HOSTILE),)


def test_an_event_nested_deeper_than_can_be_followed_lands(connection: psycopg.Connection) -> None:
    """A deep object is one path. An object that is too deep to follow marks the collection, and the event lands."""
    lines = []
    for depth in (500, 900, 950, 980, 1000, 1100, 3000):
        nested = b'{"a":' * depth + b"1" + b"}" * depth
        lines.append(call(f"m{depth}", 0).replace(b'"properties": 0', b'"properties":' + nested))
    landed = land_lines(connection, [*lines, call("m1", {"b": 1})])
    assert landed.rows + landed.quarantined == len(lines) + 1
    assert {len(row[0]) for row in properties(connection, "path")} >= {501, 2}  # type: ignore[arg-type]


VARIED = [
    call("m1", {"a": 1, "b": "x", "c": {"d": 1.5, "e": None}}, context={"ip": "::1"}),
    call("m2", {"b": "2019-07-08T18:33:25Z", "a": "text", "c": "leaf"}),
    call("m3", {"a": True, "big": 2**70, "list": []}, event="Order Placed", context={"traits": {"email": "e"}}),
    call("m4", {"": {"": 1}}, event="日本語"),
    call("m5", {"whole": 12.0, "a": False}, event="Order Placed"),
]


def everything(connection: psycopg.Connection) -> tuple[Rows, Rows]:
    """Return the whole record, whatever the order of the keys of an event."""
    found = properties(connection, "source, collection, path, digest, column_name, types, first_event_id")
    return collections(connection, "source, collection, event, first_event_id, untracked"), sorted(found)


def test_a_rescan_of_a_correct_registry_changes_nothing(connection: psycopg.Connection) -> None:
    """The rescan writes no row again."""
    land_lines(connection, VARIED * 3)
    before = properties(connection, "*, xmin"), collections(connection, "*")
    found = rescan(connection)
    assert (properties(connection, "*, xmin"), collections(connection, "*")) == before
    assert (found.events, found.collections, found.properties, found.new) == (15, 3, len(before[0]), 0)


def test_a_rescan_rebuilds_the_registry_that_landing_recorded(connection: psycopg.Connection) -> None:
    """A record that is made only from the events equals the record of landing."""
    land_lines(connection, VARIED * 3)
    before = everything(connection)
    connection.execute("truncate raw.collections, raw.properties")
    assert rescan(connection).new == len(before[1])
    after = everything(connection)
    assert (sorted(after[0]), after[1]) == (sorted(before[0]), before[1])


def test_a_rescan_repairs_the_registry(connection: psycopg.Connection) -> None:
    """Missing entries are added, and entries without events are removed.

    The other entries keep their place and time.
    """
    land_lines(connection, VARIED)
    before = everything(connection)
    kept = properties(connection, "digest, number, first_seen_at")
    connection.execute("delete from raw.properties where path[2] in ('big', 'ip')")
    connection.execute("update raw.properties set types = '{bigint}' where path[2] = 'a'")
    connection.execute(
        """
        insert into raw.collections (source, collection, event, first_event_id)
        values ('iterable', 'gone', 'Gone', 'x');
        insert into raw.properties (source, collection, path, digest, column_name, types, first_event_id)
        values ('iterable', 'gone', '{properties,x}', sha256('["properties","x"]'), 'x', '{text}', 'x')
        """
    )
    assert rescan(connection, "iterable").new == 4
    assert everything(connection) == before
    assert sum(row in kept for row in properties(connection, "digest, number, first_seen_at")) == len(kept) - 2
    assert rescan(connection, "iterable").new == 0


def test_a_rescan_orders_a_rebuild_of_tables_with_new_properties(connection: psycopg.Connection) -> None:
    """These are the tables of collections with new properties, and tracks only for new properties of a context."""
    land_lines(connection, VARIED)
    connection.execute(
        """
        insert into raw.cursors (model, source, snapshot)
        select model, source, pg_current_snapshot()
        from
            unnest(array['email_opened', 'order_placed', 'tracks']) as model,
            unnest(array['iterable', 'app']) as source
        """
    )

    def made_again() -> set[str]:
        rescan(connection)
        rows = connection.execute("select model, source from raw.cursors where rebuild_ordered").fetchall()
        connection.execute("update raw.cursors set rebuild_ordered = false")
        assert all(source == "iterable" for _, source in rows)
        return {model for model, _ in rows}

    assert made_again() == set()
    connection.execute("delete from raw.properties where path[2] = 'big'")
    assert made_again() == {"order_placed"}
    connection.execute("delete from raw.properties where path[2] = 'ip'")
    assert made_again() == {"email_opened", "tracks"}


@pytest.mark.usefixtures("few_properties")
def test_a_rescan_keeps_the_tracked_properties_of_a_collection_over_the_limit(connection: psycopg.Connection) -> None:
    """The properties that were seen first stay, although the keys of a stored event have another order."""
    lines = [call("m1", {f"key{i}": 1 for i in range(TRACKED + 50, 0, -1)}), call("m2", {"a": 1})]
    land_lines(connection, lines)
    before = everything(connection)
    assert rescan(connection).new == 0
    assert everything(connection) == before


def test_landing_goes_on_during_a_rescan(database: Database, connection: psycopg.Connection) -> None:
    """Known properties land at once. New properties wait until the scan has ended."""
    registry = SchemaRegistry()
    land_lines(connection, VARIED, registry)
    process = connection.info.backend_pid
    with ThreadPoolExecutor(1) as beside:
        with database.connect() as other:
            lock_sources(other, ["iterable"])
            land_lines(connection, VARIED, registry)
            landing = beside.submit(land_lines, connection, [call("m9", {"new": 1})], registry)
            waits = "select %s in (select pid from pg_locks where locktype = 'advisory' and not granted)"
            wait_until(lambda: other.execute(waits, (process,)).fetchone() == (True,), "the landing to wait")
            assert not landing.done()
        landing.result(timeout=60)
    assert (["properties", "new"],) in properties(connection, "path")


def test_a_process_records_properties_again_that_a_rescan_has_removed(connection: psycopg.Connection) -> None:
    """A process's copy of the registry is valid until a rescan rebuilds the registry."""
    registry = SchemaRegistry()
    land_lines(connection, VARIED, registry)
    before = everything(connection)
    connection.execute("delete from raw.events")
    rescan(connection)
    assert everything(connection) == ([], [])
    land_lines(connection, VARIED, registry)
    assert everything(connection) == before


def test_properties_that_land_during_a_rescan_stay_recorded(database: Database, connection: psycopg.Connection) -> None:
    """A transaction that began before a rescan and commits after it records nothing and loses no property."""
    registry = SchemaRegistry()
    land_lines(connection, VARIED, registry)
    before = everything(connection)
    connection.execute("delete from raw.events")

    def made_again() -> bool:
        return collections(reader) == []

    with (
        database.connect(autocommit=True) as scanner,
        database.connect(autocommit=True) as reader,
        ThreadPoolExecutor(1) as beside,
    ):
        with registry.transaction(connection) as changes:
            land(connection, "iterable", "file", parse_lines(b"\n".join(VARIED), 0), changes)
            rescanning = beside.submit(rescan, scanner)
            wait_until(made_again, "the record to be made again, of no events")
            # A rescan that does not wait for the transaction would end within this time.
            with pytest.raises(TimeoutError):
                rescanning.result(timeout=0.3)
        rescanning.result(timeout=60)
    after = everything(connection)
    assert (sorted(after[0]), after[1]) == (sorted(before[0]), before[1])


def test_the_rescan_command_prints_its_counts(run_loader: Loader, tmp_path: Path) -> None:
    """The command prints one line, and the record is complete."""
    path = tmp_path / "events.ndjson"
    path.write_bytes(b"\n".join(VARIED))
    run_loader("load", str(path))
    done = run_loader("rescan", "--source", "Iterable")
    assert (done.returncode, done.stdout) == (0, "5 events read of 3 collections. Properties: 11, of which new: 0.\n")
    assert run_loader("rescan", "--source", "nobody").returncode == 2


def test_the_database_can_read_every_text_recorded_as_a_time(connection: psycopg.Connection) -> None:
    """Every text that is recorded as a time can be cast to a time, for each part at its limits and in any time zone."""
    days = ["0001-01-01", "0004-02-29", "1582-10-10", "1999-12-31", "2000-02-29", "2024-02-29", "9999-12-31"]
    clocks = ["00:00", "23:59", "00:00:00", "23:59:59", "23:59:59.9", "12:00:00.123456789012", "23:59:59.999999999999"]
    offsets = ["", "Z", "+00", "-00:00", "+0530", "+15:59", "-15:59", "+15", "-1559"]
    times = [f"{day}T{clock}{offset}" for day in days for clock in clocks for offset in offsets]
    assert {type_of(time) for time in times} == {"timestamp with time zone"}
    for zone in "UTC", "Asia/Kolkata", "America/New_York", "Pacific/Kiritimati":
        connection.execute(f"set timezone = '{zone}'")
        rows = connection.execute(
            "select t from unnest(%s::text[]) as t where not pg_input_is_valid(t, 'timestamptz')", (times,)
        )
        assert rows.fetchall() == []
