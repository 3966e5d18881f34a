"""Iterable's export files: CSV, Parquet and lines of JSON land as the events of the webhooks."""

import csv
import gzip
import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import pandas
import psycopg
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from loader.events.formats import parse_message
from loader.events.model import Event
from loader.files import load as loading
from loader.files.chunks import LineReader
from loader.files.exports import open_lines
from tests.conftest import Loader
from tests.support.folders import DATA

WEBHOOKS = [
    json.loads(line)["webhook"]
    for line in (DATA / "example_payloads.jsonl").read_text(encoding="utf-8").splitlines()
    if '"webhook"' in line
]
EXPORT = ("load", "--format", "iterable-export")
EMAIL_SEND = "iterable-export:emailSend"


def rows(count: int = 5) -> list[dict[str, Any]]:
    """Return rows as an export has them: with ids, and few names."""
    return [
        {
            "email": f"user{i}@example.com",
            "userId": None if i % 2 else f"u{i}",
            "campaignId": 4310021,
            "templateId": None if i % 3 else 6120455,
            "messageId": f"m{i}",
            "createdAt": "2026-03-04 15:20:11 +00:00",
            "transactionalData": json.dumps({"orderId": f"A-{i}", "text": 'a "quoted", word\non two lines'}),
            "itblInternal.documentCreatedAt": "2026-03-04 15:20:12 +00:00",
        }
        for i in range(count)
    ]


def as_csv(made: list[dict[str, Any]], **options: Any) -> bytes:
    """Return the rows as a CSV file, with an empty cell for an absent value."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(made[0]), **options)
    writer.writeheader()
    writer.writerows(made)
    return text.getvalue().encode()


def as_lines(made: list[dict[str, Any]]) -> bytes:
    """Return the rows as lines of JSON."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in made)


def as_parquet(made: list[dict[str, Any]]) -> bytes:
    """Return the rows as a Parquet file."""
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(made), buffer)
    return buffer.getvalue()


def as_floats(made: list[dict[str, Any]]) -> bytes:
    """Return the rows as pandas writes them, with floats for integers with gaps."""
    buffer = io.BytesIO()
    pandas.DataFrame(made).to_parquet(buffer)
    return buffer.getvalue()


SHAPES = {
    "csv": as_csv(rows()),
    "csv with semicolons": as_csv(rows(), delimiter=";"),
    "csv in quotes": b"\xef\xbb\xbf" + as_csv(rows(), quoting=csv.QUOTE_ALL),
    "csv gzip": gzip.compress(as_csv(rows())),
    "csv zstd": zstandard.compress(as_csv(rows())),
    "lines": as_lines(rows()),
    "lines gzip": gzip.compress(as_lines(rows())),
    "parquet": as_parquet(rows()),
    "parquet by pandas": as_floats(rows()),
}


def landed(connection: psycopg.Connection) -> list[tuple[Any, ...]]:
    """Return the landed events, without their original bytes."""
    return connection.execute(
        "select message_id, collection, payload - 'native' from raw.events"
        " order by payload #>> '{properties,messageId}', message_id"
    ).fetchall()


def quarantined(connection: psycopg.Connection) -> list[tuple[str, str, bytes]]:
    """Return the open messages in quarantine."""
    return connection.execute(
        "select entrance, reason, payload from raw.quarantine where resolved_at is null order by byte_offset"
    ).fetchall()


def webhook(row: dict[str, Any]) -> Event:
    """Return the event of the webhook of an exported row."""
    fields = row | {"transactionalData": json.loads(row["transactionalData"]), "campaignName": "Spring Roast Launch"}
    body = {"email": row["email"], "userId": row["userId"], "eventName": "emailSend", "dataFields": fields}
    (event,) = parse_message("iterable-webhook", json.dumps(body).encode(), 0)
    assert isinstance(event, Event)
    return event


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_a_file_lands_the_same_events(
    run_here: Loader, connection: psycopg.Connection, tmp_path: Path, shape: str
) -> None:
    """Ids, numbers and objects equal those of the webhooks."""
    path = tmp_path / "emailSend-2026-03"
    path.write_bytes(SHAPES[shape])
    done = run_here(*EXPORT, str(path))
    assert done.returncode == 0, done.stderr
    found = landed(connection)
    assert [(row[0], row[1]) for row in found] == [(webhook(row).message_id, "email_delivered") for row in rows()]
    for row, (_, _, call) in zip(rows(), found, strict=True):
        meant = row | {"transactionalData": json.loads(row["transactionalData"])}
        names = ["email", "campaignId", "templateId", "messageId", "createdAt", "transactionalData"]
        assert call["properties"] == {name: meant[name] for name in names if meant[name] is not None}
        assert call.get("userId", call.get("anonymousId")) == row["userId"] or row["email"]
    assert "loaded before" in run_here(*EXPORT, str(path)).stdout


def test_an_exported_row_has_the_id_of_its_webhook(
    run_here: Loader, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """Each example's body, exported without names, has the same id."""
    for number, body in enumerate(WEBHOOKS):
        fields = {name: value for name, value in body["dataFields"].items() if not name.endswith("Name")}
        path = tmp_path / f"{number}-{body['eventName']}.ndjson"
        path.write_bytes(as_lines([{"userId": body.get("userId")} | fields]))
    assert run_here(*EXPORT, str(tmp_path)).returncode == 0
    meant = {parse_message("iterable-webhook", json.dumps(body).encode(), 0)[0].message_id for body in WEBHOOKS}  # type: ignore[union-attr]
    assert {row[0] for row in landed(connection)} == meant


def test_a_bad_row_is_refused_alone(run_here: Loader, connection: psycopg.Connection, tmp_path: Path) -> None:
    """Too many or too few cells, an open quote, and invalid bytes: each such row is refused alone."""
    header, *good = as_csv([row | {"transactionalData": "{}"} for row in rows(6)]).splitlines(keepends=True)
    bad = [
        b"a,b,c\r\n",
        b",".join([b"x"] * 9) + b"\r\n",
        b'u@x,,1,2,"m,2026,{},\r\n',
        b"\xff@x,,1,2,m,2026,{},\r\n",
        b"half,a r",
    ]
    mixed = [line for pair in zip(good, bad, strict=False) for line in pair]
    path = tmp_path / "emailSend.csv"
    path.write_bytes(b"".join([header, *good[5:], *mixed]))
    done = run_here(*EXPORT, str(path))
    assert done.returncode == 3
    assert len(landed(connection)) == 6
    reasons = ["bad_row", "bad_row", "bad_row", "invalid_utf8", "bad_row"]
    assert quarantined(connection) == [
        (EMAIL_SEND, reason, line.rstrip(b"\n")) for reason, line in zip(reasons, bad, strict=True)
    ]


def test_a_row_in_quarantine_is_read_as_an_export_again(
    run_here: Loader, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """A corrected row becomes an event. A row that is still bad stays."""
    (tmp_path / "emailSend.ndjson").write_bytes(b'{"campaignId":1}\n')
    (tmp_path / "fixed.json").write_bytes(as_lines(rows(1)))
    assert run_here(*EXPORT, "--no-check", str(tmp_path / "emailSend.ndjson")).returncode == 3
    assert run_here("quarantine", "retry", "1").returncode == 3
    assert run_here("quarantine", "retry", "1", "--file", str(tmp_path / "fixed.json")).returncode == 0
    assert [row[0] for row in landed(connection)] == [webhook(rows(1)[0]).message_id]


def test_a_row_that_the_database_refuses_is_kept_unchanged(
    run_here: Loader, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """The call that was made of the row is not kept, because a retry could not read it."""
    line = b'{"email":"m@x","messageId":"m","somethingNew":1e999999}'
    (tmp_path / "emailSend.ndjson").write_bytes(line + b"\n" + as_lines(rows(2)))
    assert run_here(*EXPORT, "--no-check", str(tmp_path / "emailSend.ndjson")).returncode == 3
    assert quarantined(connection) == [(EMAIL_SEND, "refused_by_database", line)]
    assert len(landed(connection)) == 2


@pytest.mark.parametrize("shape", ["csv", "csv gzip", "lines", "parquet"])
def test_a_stopped_load_continues(
    run_here: Loader,
    connection: psycopg.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shape: str,
) -> None:
    """Every row lands once, in every format and for any number of processes."""
    made = rows(800)
    write = {"csv": as_csv, "csv gzip": lambda r: gzip.compress(as_csv(r)), "lines": as_lines, "parquet": as_parquet}
    path = tmp_path / "emailSend"
    path.write_bytes(write[shape](made))
    monkeypatch.setitem(LineReader.__init__.__kwdefaults__, "chunk_bytes", 28_000)
    real, chunks = loading.land_and_advance, iter(range(3))

    def stop(*arguments: Any) -> Any:
        if next(chunks, None) is None:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setenv("LOADER_WORKERS", "1")
        patched.setattr(loading, "land_and_advance", stop)
        assert run_here(*EXPORT, str(path)).returncode == 130
    assert 0 < len(landed(connection)) < len(made)
    monkeypatch.setenv("LOADER_WORKERS", "2")
    done = run_here(*EXPORT, str(path))
    assert done.returncode == 0, done.stderr
    assert sorted(row[0] for row in landed(connection)) == sorted(webhook(row).message_id for row in made)


def test_the_readable_rows_of_a_truncated_file_land(
    run_here: Loader, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """The rest lands when the whole file arrives."""
    whole = gzip.compress(as_csv(rows(200)), compresslevel=0)
    path = tmp_path / "emailSend.csv.gz"
    path.write_bytes(whole[: len(whole) // 2])
    done = run_here(*EXPORT, str(path))
    assert (done.returncode, "cut short or damaged" in done.stderr) == (1, True)
    assert 0 < len(landed(connection)) < 200
    assert quarantined(connection) == []
    path.write_bytes(whole)
    assert run_here(*EXPORT, str(path)).returncode == 0
    assert len(landed(connection)) == len({row[0] for row in landed(connection)}) == 200


def test_a_file_can_be_loaded_again_with_another_format_or_type(
    run_here: Loader, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """A person who forgot the format, or gave a wrong type, need not change the file."""
    path = tmp_path / "part-1.ndjson"
    path.write_bytes(as_lines(rows()))
    assert run_here("load", "--no-check", str(path)).returncode == 3
    assert run_here(*EXPORT, "--type", "EMAILOPEN", str(path)).returncode == 0
    assert run_here(*EXPORT, "--type", "emailSend", str(path)).returncode == 0
    assert {row[1] for row in landed(connection)} == {"email_opened", "email_delivered"}


@pytest.mark.parametrize(("shape", "code"), [("lines", 0), ("csv", 0), ("parquet", 1)])
def test_an_export_other_than_parquet_can_come_through_a_pipe(
    run_here: Loader, connection: psycopg.Connection, tmp_path: Path, shape: str, code: int
) -> None:
    """Lines of JSON and CSV work. Parquet is read from its end, which a pipe does not support."""
    pipe = tmp_path / "emailSend"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(SHAPES[shape],))
    writer.start()
    done = run_here(*EXPORT, str(pipe))
    writer.join()
    assert (done.returncode, "give the Parquet file itself" in done.stderr) == (code, code == 1)
    assert len(landed(connection)) == (0 if code else 5)


@pytest.mark.parametrize(
    ("arguments", "file", "code", "says"),
    [
        (EXPORT, ("part-1.csv", SHAPES["csv"]), 2, "whatsAppUsageInfo"),
        ((*EXPORT, "--type", "emailSent"), ("a.csv", SHAPES["csv"]), 2, "has no events of type emailSent"),
        ((*EXPORT, "--type", "user"), ("a.csv", SHAPES["csv"]), 2, "profiles"),
        (EXPORT, ("users.csv", SHAPES["csv"]), 2, "profiles"),
        (("load", "--type", "emailSend"), ("a.csv", SHAPES["csv"]), 2, "--format iterable-export"),
        (("load",), ("emailSend.parquet", SHAPES["parquet"]), 1, "--format iterable-export"),
        (EXPORT, ("emailSend.csv", b"PK\x03\x04"), 1, "zip archive"),
        (EXPORT, ("emailSend.json", b'[{"email":"m@x"}]'), 1, "one object a line"),
        (EXPORT, ("emailSend.csv", b"a,\0b\n1,2\n"), 1, "binary"),
        (EXPORT, ("emailSend.csv", b"a,b,a\n1,2,3\n"), 1, "more than one column called a"),
        (EXPORT, ("emailSend.csv", b",,\n1,2,3\n"), 1, "names of its columns"),
        (EXPORT, ("emailSend.csv", b'"a,b\n1,2\n'), 1, "names of its columns"),
        (EXPORT, ("emailSend.parquet", SHAPES["parquet"][:200]), 1, "damaged Parquet"),
        (EXPORT, ("emailSend.parquet.gz", gzip.compress(SHAPES["parquet"])), 1, "give the Parquet file itself"),
    ],
)
def test_wrong_use_and_bad_files_get_an_error(
    run_here: Loader, tmp_path: Path, *, arguments: tuple[str, ...], file: tuple[str, bytes], code: int, says: str
) -> None:
    """The error names the problem and the remedy."""
    (tmp_path / file[0]).write_bytes(file[1])
    done = run_here(*arguments, str(tmp_path / file[0]))
    assert done.returncode == code
    assert says in done.stderr


def test_a_large_file_is_read_in_pieces(tmp_path: Path) -> None:
    """After its first line, a small part of a CSV file has been read."""
    path = tmp_path / "emailSend.csv"
    path.write_bytes(as_csv(rows(50_000)))
    with open_lines(str(path), EMAIL_SEND) as (stream, beneath):
        assert json.loads(stream.readline())["messageId"] == "m0"
        assert beneath.tell() < path.stat().st_size / 2
