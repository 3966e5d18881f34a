"""Every entrance with bodies of valid and broken calls: each good call lands, each bad call can be retried.

The calls have marks, which identify each call in raw.events and in raw.quarantine, whatever else is wrong with it.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from loader.raw.retry import open_messages, retry
from tests.conftest import loader_here
from tests.support.collector_thread import Entrance
from tests.support.served_tables import law

Write = Callable[[int], bytes]

# Hypothesis gives Python a deeper stack than a collector has.
DEEP = "[" * 15_000 + "]" * 15_000
# Values of a property; the last values land repaired.
VALUES = ['"x"', "1.10", "null", "[]", '{"a": {"b": []}}', '"}], ,[{"', r'"\\"', r'"\ud83d\ude00"', '"é"']
REPAIRED_VALUES = [r'"cut \ud83d"', r'"\ude00"', r'"nul \u0000"', r'{"\ud83d": 1}']
# Additions that make a call invalid JSON, or unacceptable to the database, with balanced brackets.
BROKEN_VALUES = ["tru", "1.", '{"a" 1}', DEEP, "1e200000", "'x'", r'"\x"', r'"cut \ud83d", "z": nul']


def tracking_call(number: int, value: str = '"x"', **fields: str | None) -> str:
    """Return a tracking call; a field is given as JSON, and None leaves the field out."""
    written = {
        "messageId": f'"mark-{number}"',
        "type": '"track"',
        "event": '"Email Opened"',
        "userId": '"u"',
        "properties": f'{{"x": {value}}}',
    } | fields
    return "{" + ", ".join(f'"{name}": {each}' for name, each in written.items() if each is not None) + "}"


def iterable_body(number: int, value: str = '"x"', **fields: str | None) -> str:
    """Return an event in the form of Iterable's webhooks."""
    written = {
        "eventName": '"emailOpen"',
        "email": '"u@example.com"',
        "dataFields": f'{{"messageId": "mark-{number}", "createdAt": "2026-03-04 15:00:02 +00:00", "x": {value}}}',
    } | fields
    return "{" + ", ".join(f'"{name}": {each}' for name, each in written.items() if each is not None) + "}"


def exported_row(number: int, value: str = '"x"', **fields: str | None) -> str:
    """Return a row of an export."""
    written = {
        "messageId": f'"mark-{number}"',
        "email": '"u@example.com"',
        "createdAt": '"2026-03-04 15:00:02 +00:00"',
        "x": value,
    } | fields
    return "{" + ", ".join(f'"{name}": {each}' for name, each in written.items() if each is not None) + "}"


def ways(call: Callable[..., str], bad_fields: list[dict[str, str | None]]) -> tuple[list[Write], list[Write]]:
    """Return the texts of a call that can land, and of a call that cannot land, all with balanced brackets."""
    good = [lambda n, v=v: call(n, v).encode() for v in (*VALUES, *REPAIRED_VALUES)]
    bad = [lambda n, v=v: call(n, v).encode() for v in BROKEN_VALUES]
    bad += [lambda n, fields=fields: call(n, **fields).encode() for fields in bad_fields]
    bad += [lambda n, fields=fields: call(n, REPAIRED_VALUES[0], **fields).encode() for fields in bad_fields]
    bad += [
        lambda n: b'["mark-%d"]' % n,
        lambda n: b'"mark-%d"' % n,
        lambda n: b"mark-%d" % n,
        lambda n: call(n, '"?"').encode().replace(b"?", b"\xff"),
    ]
    return good, bad


TRACKING = ways(
    tracking_call,
    [
        {"userId": None},
        {"userId": "7"},
        {"userId": '""'},
        {"event": None},
        {"event": "7"},
        {"properties": "[]"},
        {"traits": '"x"'},
        {"type": '"delete"'},
        {"userId": None, "batch": '[{"userId": "u"}]'},
    ],
)
ITERABLE = ways(
    iterable_body,
    [
        {"email": None},
        {"email": "true"},
        {"eventName": None},
        {"eventName": "7"},
        {"userId": "[]"},
    ],
)
EXPORTED = ways(exported_row, [{"email": None}, {"email": '""'}, {"email": "[]"}])


@dataclass(frozen=True)
class Route:
    """A route that accepts several calls.

    Attributes:
        path: The path of the route.
        ways: The texts of its calls, those that can land and those that cannot.
        form: The body around the calls, as a format.
    """

    path: str
    ways: tuple[list[Write], list[Write]]
    form: bytes

    def body(self, calls: list[bytes]) -> bytes:
        """Return the body with the calls."""
        return self.form % b" ,\n".join(calls)


BATCH = b'{"sentAt": "2026-03-04T15:00:03Z", "batch": [ %b ], "context": {"a": 1}}'
ROUTES = [
    *(Route(path, TRACKING, BATCH) for path in ("/v1/batch", "/v1/import", "/v1/b/")),
    Route("/v1/batch", TRACKING, rb'{"batch":[%b],"context":{"traits":{"city":"cut \ud83d"}}}'),
    Route("/webhooks/segment", TRACKING, b" [%b]\n"),
    Route("/webhooks/iterable", ITERABLE, b"[%b]"),
]
ENTRANCES = {"/webhooks/segment": "segment-webhook", "/webhooks/iterable": "iterable-webhook"}

# Whether a call is good, and the number of its text.
mixes = st.lists(st.tuples(st.booleans(), st.integers(0, 10_000)), min_size=1, max_size=10)


def written(mix: list[tuple[bool, int]], good: list[Write], bad: list[Write]) -> tuple[list[bytes], set[int], set[int]]:
    """Return the calls of a mix, and the marks of those that can land and of those that cannot."""
    calls = [(good if is_good else bad)[way % len(good if is_good else bad)](n) for n, (is_good, way) in enumerate(mix)]
    marks = {n for n, (is_good, _) in enumerate(mix) if is_good}
    return calls, marks, set(range(len(mix))) - marks


def landed_marks(connection: psycopg.Connection) -> Counter[int]:
    """Return the number of landings of each call."""
    rows = connection.execute("select (regexp_match(payload::text, 'mark-([0-9]+)'))[1]::int from raw.events")
    return Counter(row[0] for row in rows)


def open_marks(connection: psycopg.Connection) -> dict[int, set[int]]:
    """Return the marks of the calls in each open message of the quarantine, by its number."""
    rows = connection.execute("select id, payload from raw.quarantine where resolved_at is null")
    return {number: {int(mark) for mark in re.findall(rb"mark-([0-9]+)", payload)} for number, payload in rows}


def assert_each_where_it_belongs(connection: psycopg.Connection, good: set[int], bad: set[int]) -> None:
    """Check that each good call has landed once, and each bad call is a message of its own."""
    assert landed_marks(connection) == Counter(good)
    messages = open_marks(connection)
    assert all(len(marks) == 1 for marks in messages.values()), messages
    assert Counter(mark for marks in messages.values() for mark in marks) == Counter(bad)


def assert_corrected(
    connection: psycopg.Connection, good: set[int], bad: set[int], correction: Callable[[str, int], bytes]
) -> None:
    """Check that each bad call lands when it is corrected, and that the conservation law holds."""
    refused = retry(connection, open_messages(connection))
    assert not any(each.landed for each in refused)
    for number, marks in open_marks(connection).items():
        [mark] = marks
        [(entrance, received_at)] = connection.execute(
            "select entrance, received_at from raw.quarantine where id = %s", (number,)
        ).fetchall()
        [outcome] = retry(connection, [number], correction(entrance, mark))
        assert (outcome.landed, outcome.refused) == (1, 0), outcome
        moments = connection.execute("select received_at from raw.events order by seq desc limit 1").fetchall()
        assert moments == [(received_at,)]
    assert landed_marks(connection) == Counter(good | bad)
    assert open_messages(connection) == []
    assert law(connection)["accepted"] == len(good | bad)


def correction(entrance: str, mark: int) -> bytes:
    """Return a corrected call for the entrance of the original."""
    if entrance.startswith("iterable-export"):
        return exported_row(mark).encode()
    text = iterable_body(mark) if entrance == "iterable-webhook" else tracking_call(mark)
    return b"\xef\xbb\xbf" + text.encode() + b"\r\n"


@pytest.mark.parametrize("examples", [4, pytest.param(60, marks=pytest.mark.heavy)])
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_every_call_of_a_body_lands_or_can_be_retried(module_entrance: Entrance, route: Route, examples: int) -> None:
    """This holds whatever calls are around it."""
    connection = module_entrance.connection

    @given(mixes)
    @hypothesis_settings(max_examples=examples)
    def check(mix: list[tuple[bool, int]]) -> None:
        module_entrance.empty()
        calls, good, bad = written(mix, *route.ways)
        reply = module_entrance.collector.post(route.path, route.body(calls), key=module_entrance.key)
        assert reply.status == 200 or (reply.status == 400 and not good and route.path in ENTRANCES)
        assert_each_where_it_belongs(connection, good, bad)
        assert_corrected(connection, good, bad, correction)

    check()


@pytest.mark.parametrize("examples", [4, pytest.param(60, marks=pytest.mark.heavy)])
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_a_body_that_is_in_quarantine_whole_is_retried_call_by_call(
    module_entrance: Entrance, route: Route, examples: int
) -> None:
    """Earlier versions kept whole bodies. Each valid call lands, and each other call becomes a message of its own."""
    connection = module_entrance.connection
    entrance = ENTRANCES.get(route.path, "tracking")

    @given(mixes)
    @hypothesis_settings(max_examples=examples)
    def check(mix: list[tuple[bool, int]]) -> None:
        module_entrance.empty()
        calls, good, bad = written(mix, *route.ways)
        row = connection.execute(
            "insert into raw.quarantine (source, entrance, reason, detail, payload, received_at)"
            " values ('iterable', %s, 'bad_request', 'd', %s, '2026-01-02') returning id",
            (entrance, route.body(calls)),
        ).fetchone()
        assert row
        [outcome] = retry(connection, [row[0]])
        assert (outcome.landed, outcome.refused) == (len(good), len(bad))
        if good:
            assert_each_where_it_belongs(connection, good, bad)
            moments = connection.execute(
                "select received_at from raw.quarantine union select received_at from raw.events"
            )
            assert len(moments.fetchall()) == 1
        else:
            assert open_messages(connection) == [row[0]]
            corrected = route.body([correction(entrance, mark).removeprefix(b"\xef\xbb\xbf") for mark in sorted(bad)])
            [outcome] = retry(connection, [row[0]], corrected)
            assert (outcome.landed, outcome.refused) == (len(bad), 0)
            bad = set()
            good = set(range(len(mix)))
        assert_corrected(connection, good, bad, correction)

    check()


# An invalid value for calls of every kind.
NO_CALL: list[dict[str, str | None]] = [
    {"userId": None},
    {"userId": "7"},
    {"userId": '""'},
    {"properties": "[]"},
    {"traits": '"x"'},
    {"userId": None, "batch": '[{"userId": "u"}]'},
]
NO_TRACK_CALL: list[dict[str, str | None]] = [*NO_CALL, {"event": None}, {"event": "7"}]

KINDS = ["track", "identify", "page", "screen", "group", "alias", "t", "i", "p", "s", "g", "a"]
SINGLE = {
    **{f"/v1/{kind}": ways(tracking_call, NO_TRACK_CALL if kind[0] == "t" else NO_CALL) for kind in KINDS},
    "/webhooks/segment": TRACKING,
    "/webhooks/iterable": ITERABLE,
}


@pytest.mark.parametrize("examples", [6, pytest.param(80, marks=pytest.mark.heavy)])
@pytest.mark.parametrize("path", SINGLE)
def test_a_single_call_lands_or_can_be_retried(module_entrance: Entrance, path: str, examples: int) -> None:
    """The type may be in the path only, and the call may be cut short."""
    connection = module_entrance.connection
    good, bad = SINGLE[path]

    def corrected(entrance: str, mark: int) -> bytes:
        return tracking_call(mark, type=None).encode() if ":" in entrance else correction(entrance, mark)

    @given(st.booleans(), st.integers(0, 10_000), st.booleans(), st.integers(0, 20))
    @hypothesis_settings(max_examples=examples)
    def check(is_good: bool, way: int, has_type: bool, cut: int) -> None:
        module_entrance.empty()
        text = (good if is_good else bad)[way % len(good if is_good else bad)](0)
        if path.startswith("/v1/") and not has_type:
            text = text.replace(b'"type": "track", ', b"")
        if not is_good:
            text = text[: max(len(text) - cut, 30)]
        reply = module_entrance.collector.post(path, text, key=module_entrance.key)
        # The answer is success if only the database refuses the call.
        assert reply.status == 200 if is_good else reply.status == 400 or b"1e200000" in text, (text, reply)
        assert_each_where_it_belongs(connection, *(({0}, set()) if is_good else (set(), {0})))
        if not is_good:
            assert_corrected(connection, set(), {0}, corrected)

    check()


def load(entrance: Entrance, path: Path, *arguments: str) -> None:
    """Load a file with bad lines from the command line."""
    done = loader_here(entrance.settings)("load", str(path), "--source", "iterable", *arguments)
    assert done.returncode in (0, 3), done.stderr


def as_csv(rows: list[bytes], bad: set[int]) -> bytes:
    """Return rows as a CSV file, in which the bad rows do not fit the header."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["messageId", "email", "createdAt"])
    for number in range(len(rows)):
        row = [f"mark-{number}", "u@example.com", "2026-03-04 15:00:02 +00:00"]
        writer.writerow([*row[: number % 2], f"mark-{number}", "x", "y", "z"] if number in bad else row)
    return text.getvalue().encode()


def as_parquet(rows: list[bytes], bad: set[int]) -> bytes:
    """Return rows as a Parquet file, in which the bad rows have no user: an absent value, or an empty text."""
    buffer = io.BytesIO()
    records = [
        {
            "messageId": f"mark-{number}",
            "email": [None, ""][number % 2] if number in bad else "u@example.com",
            "createdAt": "2026-03-04 15:00:02 +00:00",
        }
        for number in range(len(rows))
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), buffer)
    return buffer.getvalue()


FILES = {"exported csv": as_csv, "exported parquet": as_parquet}


@pytest.mark.parametrize("examples", [2, pytest.param(20, marks=pytest.mark.heavy)])
@pytest.mark.parametrize("form", ["tracking calls", "exported lines", *FILES])
def test_every_line_of_a_file_lands_or_can_be_retried(
    module_entrance: Entrance, tmp_path: Path, form: str, examples: int
) -> None:
    """This holds whatever lines are around it."""
    connection = module_entrance.connection
    good_ways, bad_ways = TRACKING if form == "tracking calls" else EXPORTED

    @given(mixes)
    @hypothesis_settings(max_examples=examples)
    def check(mix: list[tuple[bool, int]]) -> None:
        module_entrance.empty()
        connection.execute("truncate raw.loads")
        lines, good, bad = written([(True, 0), *mix], good_ways, bad_ways)
        path = tmp_path / "emailOpen.ndjson"
        path.write_bytes(FILES[form](lines, bad) if form in FILES else b"\n".join(lines))
        load(module_entrance, path, *(() if form == "tracking calls" else ("--format", "iterable-export")))
        assert_each_where_it_belongs(connection, good, bad)
        assert_corrected(connection, good, bad, correction)

    check()
