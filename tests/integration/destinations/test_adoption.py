"""A dump restored into another cluster: every reader continues exactly where it was."""

from pathlib import Path

import psycopg
import pytest

from loader.postgres.database import Database, open_database
from loader.raw.dead_letters import list_letters, retry_letters
from loader.raw.destinations import find_destination, resume_destination
from tests.conftest import restored
from tests.support.deliveries import add_segment, conserved, deliver, fill_tracks, ids, land_calls, land_many
from tests.support.receivers import Receiver, Respond, receiving, refusing


def test_a_restored_dump_delivers_every_event_once(
    database: Database, connection: psycopg.Connection, receiver: Receiver, other_server: str, home: Path
) -> None:
    """One destination is up to date, one is paused, one is in the middle of a window, and one has a dead letter."""
    with receiving() as behind, receiving() as within, receiving() as refuser:
        add_segment(connection, receiver, name="current", batch=5)
        add_segment(connection, behind, name="behind", batch=5)
        add_segment(connection, within, name="within", batch=5)
        add_segment(connection, refuser, name="refuser", batch=5)
        refuser.answer = refusing(lambda call: call["messageId"] == "m3")
        with database.connect() as late:
            land_many(late, ids(2, 500))
            for start in (0, 10, 20):
                land_many(connection, ids(10, start))
                land_calls(connection, {"type": "identify", "messageId": f"i{start}"})
                fill_tracks(connection)
                deliver(database, "current")
                deliver(database, "refuser")
                if start == 0:
                    deliver(database, "behind")
                    connection.execute(
                        "update raw.destinations set state = 'paused', pause_reason = 'manual' where name = 'behind'"
                    )
            late.commit()
        # Landed, and not in tracks yet.
        land_many(connection, ids(5, 600))

        def stop_after_two(_: object) -> Respond:
            if len(within.requests) == 2:
                connection.execute("update raw.destinations set state = 'paused', pause_reason = 'manual'")
                return Respond(503)
            return Respond()

        within.answer = stop_after_two
        deliver(database, "within")
        assert len(within.taken_ids) == 5
        connection.execute("update raw.destinations set state = 'active', pause_reason = null where name <> 'behind'")
        with restored(database.url, other_server, home) as settings, open_database(settings) as copy:
            within.answer = lambda _: Respond()
            with copy.connect(autocommit=True) as there:
                resume_destination(there, find_destination(there, "behind").id)
                land_many(there, ids(5, 700))
                for name in ("current", "behind", "within", "refuser"):
                    deliver(copy, name)
                fill_tracks(there)
                for name in ("current", "behind", "within", "refuser"):
                    deliver(copy, name)
                letters = list_letters(there, find_destination(there, "refuser").id, 10)
                assert [each.message_id for each in letters] == ["m3"]
                refuser.answer = lambda _: Respond()
                retry_letters(there, find_destination(there, "refuser").id, None)
                deliver(copy, "refuser")
                for name in ("current", "behind", "within", "refuser"):
                    conserved(there, name)
        everything = sorted([*ids(30), *ids(2, 500), *ids(5, 600), *ids(5, 700), "i0", "i10", "i20"])
        assert sorted(receiver.taken_ids) == everything
        assert sorted(behind.taken_ids) == everything
        assert sorted(within.taken_ids) == everything
        assert sorted(refuser.taken_ids) == everything


@pytest.mark.parametrize("text", ["3:3:", "3:9:4,7", "5:9:5"])
def test_a_cut_snapshot_shows_only_the_visible_transactions_below_the_cut(
    connection: psycopg.Connection, text: str
) -> None:
    """Every cut of every snapshot agrees with the snapshot below the cut."""
    for before in range(1, 12):
        rows = connection.execute(
            "select pg_visible_in_snapshot(xid::text::xid8, raw.cut_snapshot(%(s)s, %(b)s::text::xid8))"
            " = (pg_visible_in_snapshot(xid::text::xid8, %(s)s::pg_snapshot) and xid < %(b)s)"
            " from generate_series(1, 12) as xid",
            {"s": text, "b": before},
        ).fetchall()
        assert rows == [(True,)] * 12, before
