"""The spool: appended events come out once and in order, whatever happens to the process and the disk."""

import errno
import hashlib
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loader.buffer import spool as module
from loader.buffer import spool_segment as files
from loader.buffer.spool import Part, Spool
from loader.buffer.spool_segment import segment_files, warehouse_of
from loader.errors import SpoolError
from loader.events.model import Delivery, Event, Reason, Refused
from loader.postgres.warehouse import Warehouse
from tests.support.folders import DATA, ROOT

NOW = datetime(2026, 3, 4, 15, 0, tzinfo=UTC)
ROOM = 100_000_000

EVENTS = st.builds(
    Event,
    payload=st.binary(max_size=200),
    offset=st.integers(0, 2**40),
    message_id=st.text(max_size=20),
    collection=st.none() | st.text(max_size=20),
    received_at=st.none() | st.datetimes(timezones=st.just(UTC)),
)
REFUSALS = st.builds(
    Refused,
    payload=st.binary(max_size=200),
    offset=st.integers(0, 2**40),
    reason=st.sampled_from(Reason),
    detail=st.text(max_size=20),
    repaired=st.booleans(),
)
DELIVERIES = st.builds(
    Delivery,
    source=st.text(max_size=10),
    entrance=st.text(max_size=10),
    events=st.lists(EVENTS, max_size=3),
    refused=st.lists(REFUSALS, max_size=3),
    received_at=st.datetimes(timezones=st.just(UTC)),
)


def delivery(name: str, size: int = 10) -> Delivery:
    """Return a delivery of one event with an id of its own."""
    return Delivery("iterable", "tracking", [Event(b"x" * size, 1, name, "email_opened", None)], [], NOW)


def names(deliveries: list[Delivery]) -> list[str]:
    """Return the ids of the events of deliveries."""
    return [event.message_id for each in deliveries for event in each.events]


def replay(spool: Spool, size: int = 1) -> list[Part]:
    """Take every delivery out of a spool."""
    parts = []
    while part := spool.next_part(size):
        parts.append(part)
        spool.mark_committed(part)
    return parts


def contents(folder: Path, positions: dict[str, int] | None = None) -> list[str]:
    """Return the deliveries that a process finds in a folder at its start, and leave the folder unchanged."""
    spool = Spool(folder, ROOM)
    spool.adopt()
    spool.resume(positions or {})
    found = []
    while part := spool.next_part(ROOM):
        found += names(part.deliveries)
        if part.last:
            break
        spool.mark_committed(part)
    spool.close()
    return found


def segments(folder: Path) -> list[Path]:
    """Return the segment files of a folder, in their order."""
    return segment_files(folder)


def set_aside(folder: Path) -> bytes:
    """Return the bytes that were kept as damaged."""
    return b"".join(path.read_bytes() for path in sorted(folder.glob("*.damaged")))


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """An empty spool."""
    opened = Spool(tmp_path, ROOM)
    yield opened
    opened.close()


# Order and size


@settings(max_examples=20)
@given(st.lists(st.lists(DELIVERIES, max_size=3), max_size=6), st.integers(1, 2000), st.integers(1, 2000))
@example([[], [delivery("a")]], 1000, 1)
def test_a_replay_returns_all_deliveries_in_order_and_unchanged(
    tmp_path_factory: pytest.TempPathFactory, appends: list[list[Delivery]], segment_bytes: int, part_bytes: int
) -> None:
    """Deliveries come out in order and byte for byte, however segments and parts divide them.

    Then the disk is empty.
    """
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool(folder, ROOM, segment_bytes=segment_bytes)
    for deliveries in appends:
        spool.append(deliveries)
    parts = replay(spool, part_bytes)
    assert [each for part in parts for each in part.deliveries] == [each for some in appends for each in some]
    assert spool.size == 0
    assert list(folder.iterdir()) == []


def test_a_segment_has_a_limited_size_and_is_deleted_after_its_replay(tmp_path: Path) -> None:
    """A replayed segment is deleted, so a spool gives its room back piece by piece."""
    spool = Spool(tmp_path, ROOM, segment_bytes=1000)
    for number in range(10):
        spool.append([delivery(str(number), 500)])
    assert len(segments(tmp_path)) == 5
    for left in (4, 3):
        for _ in range(2):
            part = spool.next_part(1)
            assert part
            spool.mark_committed(part)
        spool.next_part(1)
        assert len(segments(tmp_path)) == left
    spool.close()


def test_a_delivery_appended_during_a_replay_is_replayed_last(spool: Spool) -> None:
    """The last part is the part after which no delivery has come."""
    spool.append([delivery("a")])
    part = spool.next_part(1)
    assert part
    assert part.last
    spool.append([delivery("b")])
    spool.mark_committed(part)
    assert [names(part.deliveries) for part in replay(spool)] == [["b"]]


def test_a_full_spool_refuses_deliveries_until_a_part_is_replayed(tmp_path: Path) -> None:
    """A delivery that does not fit is refused as a whole. Replaying gives room back."""
    spool = Spool(tmp_path, 3000)
    for number in range(4):
        spool.append([delivery(str(number), 500)])
    with pytest.raises(SpoolError, match="full"):
        spool.append([delivery("4", 500)])
    assert spool.size <= 3000
    assert sum(path.stat().st_size for path in segments(tmp_path)) == spool.size
    part = spool.next_part(1)
    assert part
    spool.mark_committed(part)
    spool.append([delivery("after", 500)])
    assert [name for part in replay(spool) for name in names(part.deliveries)] == [
        *"123",
        "after",
    ]


def test_a_spool_with_limit_0_refuses_deliveries_and_still_replays_its_segments(tmp_path: Path) -> None:
    """A spool with a limit of 0 refuses deliveries and still gives back the events that it holds."""
    earlier = Spool(tmp_path, ROOM)
    earlier.append([delivery("a")])
    earlier.close()
    spool = Spool(tmp_path, 0)
    with pytest.raises(SpoolError, match="LOADER_SPOOL_BYTES"):
        spool.append([delivery("b")])
    assert spool.adopt() == 1
    assert [names(part.deliveries) for part in replay(spool)] == [["a"]]


def test_only_the_owner_can_read_a_segment(spool: Spool, tmp_path: Path) -> None:
    """Only the owner may read the files, because they hold the events of senders."""
    spool.append([delivery("a")])
    [segment] = segments(tmp_path)
    assert stat.S_IMODE(segment.stat().st_mode) == 0o600


# Positions in the database


def test_a_replay_continues_at_the_position_in_the_database(tmp_path: Path) -> None:
    """The database's position of a segment counts, in another process too."""
    first = Spool(tmp_path, ROOM)
    for name in "abc":
        first.append([delivery(name)])
    part = first.next_part(1)
    assert part
    assert names(part.deliveries) == ["a"]
    first.close()
    assert contents(tmp_path, {part.segment: part.end}) == ["b", "c"]


def test_a_committed_part_whose_answer_was_lost_is_not_replayed_again(spool: Spool) -> None:
    """A commit whose answer was lost has moved the position. The part does not land again."""
    for name in "abc":
        spool.append([delivery(name)])
    part = spool.next_part(1)
    assert part
    spool.resume({part.segment: part.end})
    assert [names(part.deliveries) for part in replay(spool)] == [["b"], ["c"]]


def test_a_database_from_a_backup_gets_its_lost_events_again(spool: Spool) -> None:
    """The spool follows a position that went back or is unknown."""
    for name in "ab":
        spool.append([delivery(name)])
    part = spool.next_part(1)
    assert part
    spool.mark_committed(part)
    spool.resume({})
    assert [names(part.deliveries) for part in replay(spool)] == [["a"], ["b"]]


def test_a_position_beyond_the_end_of_a_segment_replays_nothing(tmp_path: Path) -> None:
    """If a disk has lost an end that was replayed before, no event is lost."""
    first = Spool(tmp_path, ROOM)
    first.append([delivery("a")])
    first.close()
    [segment] = segments(tmp_path)
    assert contents(tmp_path, {segment.name: 1_000_000}) == []


# Damage


def test_all_records_before_a_record_cut_short_are_replayed(tmp_path: Path) -> None:
    """A power cut may cut the last record anywhere.

    The earlier records come out, and the bytes of the cut record are kept.
    """
    spool = Spool(tmp_path / "whole", ROOM)
    for name in "ab":
        spool.append([delivery(name)])
    whole = spool.size
    spool.append([delivery("c")])
    spool.close()
    [segment] = segments(tmp_path / "whole")
    data = segment.read_bytes()
    for length in range(whole, len(data)):
        folder = tmp_path / str(length)
        folder.mkdir()
        (folder / segment.name).write_bytes(data[:length])
        assert contents(folder) == ["a", "b"]
        assert set_aside(folder) == data[whole:length]


def test_all_records_around_a_damaged_record_are_replayed(tmp_path: Path) -> None:
    """Any byte of a record may be wrong. The other records come out, and the bytes of the damaged record are kept."""
    spool = Spool(tmp_path / "whole", ROOM)
    ends = []
    for name in "abc":
        spool.append([delivery(name)])
        ends.append(spool.size)
    spool.close()
    [segment] = segments(tmp_path / "whole")
    data = segment.read_bytes()
    for place in range(ends[0], ends[1]):
        damaged = bytearray(data)
        damaged[place] ^= 0xFF
        folder = tmp_path / str(place)
        folder.mkdir()
        (folder / segment.name).write_bytes(damaged)
        assert contents(folder) == ["a", "c"]
        assert set_aside(folder) == damaged[ends[0] : ends[1]]


def forged() -> bytes:
    """Return bytes that a sender who knows the format may send: records of every form, for another source."""
    body = files.encode([Delivery("victim", "tracking", [Event(b"{}", 1, "forged", "email_opened", None)], [], NOW)])
    old = files._OLD_HEADER.pack(files._OLD_MARK, len(body), zlib.crc32(body)) + body
    nonce = bytes(16)
    checksum = hashlib.blake2b(body, key=nonce, digest_size=16).digest()
    return old + files._HEADER.pack(nonce, len(body), checksum) + body


def test_c8_no_record_can_be_forged_out_of_a_damaged_one(tmp_path: Path) -> None:
    """If a record that contains forged records is damaged anywhere, no forged record comes out."""
    spool = Spool(tmp_path / "whole", ROOM)
    spool.append([delivery("a")])
    begins = spool.size
    spool.append([Delivery("iterable", "tracking", [Event(forged(), 1, "b", "email_opened", None)], [], NOW)])
    ends = spool.size
    spool.append([delivery("c")])
    spool.close()
    [segment] = segments(tmp_path / "whole")
    data = segment.read_bytes()
    assert data.count(b"victim") == 2
    for place in range(begins, ends):
        damaged = bytearray(data)
        damaged[place] ^= 0xFF
        folder = tmp_path / str(place)
        folder.mkdir()
        (folder / segment.name).write_bytes(damaged)
        assert contents(folder) == ["a", "c"]


def test_c8_each_segment_has_a_nonce_of_its_own(tmp_path: Path) -> None:
    """A sender who has read one segment cannot forge a record in another segment."""
    spool = Spool(tmp_path, ROOM, segment_bytes=1)
    for name in "ab":
        spool.append([delivery(name)])
    spool.close()
    first, second = segments(tmp_path)
    second.write_bytes(first.read_bytes())
    assert contents(tmp_path) == ["a"]


def test_c8_segments_of_the_old_form_are_read(tmp_path: Path) -> None:
    """The previous version wrote such segments. Damage in them costs only the damaged record."""
    for cut, last in ((0, 5), (1, 4)):
        folder = tmp_path / str(cut)
        shutil.copytree(DATA / "spool", folder)
        segment = segments(folder)[-1]
        data = segment.read_bytes()
        segment.write_bytes(data[: len(data) - cut])
        assert contents(folder) == [f"old-{number}" for number in range(1, last + 1)]


def test_a_renamed_segment_is_neither_replayed_nor_changed(tmp_path: Path) -> None:
    """The checksums depend on the segment's name. Without the name, every record would count as damage."""
    spool = Spool(tmp_path, ROOM)
    spool.append([delivery("a")])
    spool.close()
    [segment] = segments(tmp_path)
    renamed = segment.rename(tmp_path / "backup.segment")
    assert contents(tmp_path) == []
    assert set_aside(tmp_path) == b""
    spool = Spool(tmp_path, ROOM)
    with pytest.raises(SpoolError, match="was renamed"):
        spool.take(renamed.name)
    renamed.rename(segment)
    assert contents(tmp_path) == ["a"]


def test_a_record_after_large_damage_is_replayed(tmp_path: Path) -> None:
    """A damaged stretch longer than one read does not hide a good record behind the stretch."""
    spool = Spool(tmp_path, ROOM)
    for name, size in (("a", 10), ("b", 5000), ("c", 10)):
        spool.append([delivery(name, size)])
    spool.close()
    [segment] = segments(tmp_path)
    data = bytearray(segment.read_bytes())
    data[2000] ^= 0xFF
    segment.write_bytes(data)
    spool = Spool(tmp_path, ROOM)
    spool.adopt()
    assert [names(part.deliveries) for part in replay(spool, 100)] == [["a"], ["c"]]


def test_damage_is_kept_aside_once(tmp_path: Path) -> None:
    """Several processes may find the same damage several times. The bytes are kept once, and for the owner only."""
    spool = Spool(tmp_path, ROOM)
    spool.append([delivery("a")])
    spool.close()
    [segment] = segments(tmp_path)
    with segment.open("ab") as file:
        file.write(b"rubbish")
    for _ in range(3):
        assert contents(tmp_path) == ["a"]
    [aside] = tmp_path.glob("*.damaged")
    assert aside.read_bytes() == b"rubbish"
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600


def test_a_replay_stops_until_the_damaged_bytes_can_be_kept_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each replay tries again to keep the damaged bytes, until a disk accepts them."""
    spool = Spool(tmp_path, ROOM)
    spool.append([delivery("a")])
    spool.close()
    [segment] = segments(tmp_path)
    with segment.open("ab") as file:
        file.write(b"rubbish")
    spool = Spool(tmp_path, ROOM)
    spool.adopt()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing(errno.ENOSPC))
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                spool.next_part(ROOM)
    assert [names(part.deliveries) for part in replay(spool, ROOM)] == [["a"]]
    assert set_aside(tmp_path) == b"rubbish"


# Warehouses


def of(identity: str) -> Warehouse:
    """Return a warehouse with the given id."""
    warehouse = Warehouse()
    warehouse.id = identity
    return warehouse


OURS, THEIRS = (f"{digit * 8}-0000-4000-8000-000000000000" for digit in "12")


def test_a_segment_carries_the_id_of_its_warehouse(tmp_path: Path) -> None:
    """A segment gets the id when the id is known, and a new segment begins when the id changes."""
    warehouse = Warehouse()
    spool = Spool(tmp_path, ROOM, warehouse)
    for identity in ("", OURS, OURS, THEIRS):
        warehouse.id = identity
        spool.append([delivery(identity)])
    assert [warehouse_of(path) for path in segments(tmp_path)] == ["", OURS, THEIRS]


def test_only_segments_of_the_warehouse_are_replayed(tmp_path: Path) -> None:
    """Segments of another warehouse are released for their owner. Segments without an id count as before."""
    for identity in (THEIRS, "", OURS):
        spool = Spool(tmp_path, ROOM, of(identity))
        spool.append([delivery(identity)])
        spool.close()
    ours, theirs = Spool(tmp_path, ROOM, of(OURS)), Spool(tmp_path, ROOM, of(THEIRS))
    assert ours.adopt() == 3
    assert theirs.adopt(THEIRS) == 0
    ours.adopt(OURS)
    assert theirs.adopt(THEIRS) == 1
    assert [names(part.deliveries) for part in replay(ours)] == [[""], [OURS]]
    assert [names(part.deliveries) for part in replay(theirs)] == [[THEIRS]]
    assert segments(tmp_path) == []


def test_a_segment_begun_for_another_warehouse_during_a_replay_is_not_replayed(tmp_path: Path) -> None:
    """A replay for one warehouse finds a segment that was begun for another warehouse, and leaves the segment."""
    warehouse = of(THEIRS)
    spool = Spool(tmp_path, ROOM, warehouse)
    spool.adopt(OURS)
    spool.append([delivery("theirs")])
    assert spool.next_part(1) is None
    assert spool.size == 0
    warehouse.id = OURS
    spool.append([delivery("ours")])
    assert [names(part.deliveries) for part in replay(spool)] == [["ours"]]
    assert [warehouse_of(path) for path in segments(tmp_path)] == [THEIRS]


# Room


def test_c7_the_check_for_room_writes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check makes and syncs no file, whatever its result is."""
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    monkeypatch.setattr(os, "pwrite", failing(errno.EIO))
    Spool(tmp_path / "spool", ROOM).check_room()
    assert list((tmp_path / "spool").iterdir()) == []
    for spool, why in ((Spool(tmp_path, 0), "LOADER_SPOOL_BYTES is 0"), (Spool(tmp_path, 10), "is full")):
        with pytest.raises(SpoolError, match=why):
            spool.check_room()
    with pytest.raises(SpoolError, match="cannot be written"):
        Spool(Path("/proc/spool"), ROOM).check_room()


def test_c7_a_disk_that_has_just_failed_has_no_room(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk has no room until it accepts a record again, or until some seconds have passed."""
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing(errno.EIO))
        with pytest.raises(SpoolError):
            spool.append([delivery("a")])
    with pytest.raises(SpoolError, match="last attempt"):
        spool.check_room()
    spool.append([delivery("a")])
    spool.check_room()


# Several processes


def test_a_process_does_not_replay_segments_that_another_process_holds(tmp_path: Path) -> None:
    """Each process has its own segments. The next process that looks takes over abandoned segments, in their order."""
    first = Spool(tmp_path, ROOM)
    first.append([delivery("a")])
    second = Spool(tmp_path, ROOM)
    second.append([delivery("b")])
    assert second.adopt() == 0
    first.append([delivery("c")])
    first.close()
    assert second.adopt() == 1
    assert [name for part in replay(second) for name in names(part.deliveries)] == ["a", "c", "b"]
    assert segments(tmp_path) == []


def test_records_appended_by_a_killed_process_are_replayed(tmp_path: Path) -> None:
    """`kill -9` frees the lock and loses no record."""
    program = (
        "import os, signal, sys; from pathlib import Path; from tests.unit.buffer.test_spool import Spool, delivery;"
        "spool = Spool(Path(sys.argv[1]), 10**6); [spool.append([delivery(name)]) for name in 'abc'];"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode < 0
    assert contents(tmp_path) == ["a", "b", "c"]


def test_a_new_segment_that_another_process_has_deleted_refuses_deliveries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may adopt, empty and delete a new file before its creator locks the file."""
    spool = Spool(tmp_path, ROOM)
    lock = files.fcntl.flock

    def deleted_first(file: int, how: int) -> None:
        for path in segments(tmp_path):
            path.unlink()
        lock(file, how)

    with monkeypatch.context() as patched:
        patched.setattr(files.fcntl, "flock", deleted_first)
        with pytest.raises(SpoolError):
            spool.append([delivery("a")])
    spool.append([delivery("b")])
    spool.close()
    assert contents(tmp_path) == ["b"]


# Disks


def failing(number: int) -> Any:
    """Return a function that fails as a system call does."""

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Limit the size of files, as a full disk does: the write that reaches the limit is cut short."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_keeps_no_part_of_a_refused_record(spool: Spool, tmp_path: Path) -> None:
    """The written part of a record is cut off again. When there is room, a new segment begins."""
    spool.append([delivery("a")])
    before = spool.size
    with full_disk(before + 100), pytest.raises(SpoolError, match="cannot be written"):
        spool.append([delivery("b", 10_000)])
    assert spool.size == before
    assert [path.stat().st_size for path in segments(tmp_path)] == [before]
    spool.append([delivery("c")])
    assert [name for part in replay(spool) for name in names(part.deliveries)] == ["a", "c"]


def test_failed_appends_to_a_full_disk_leave_no_files_and_no_descriptors(spool: Spool, tmp_path: Path) -> None:
    """Each attempt begins a segment and leaves no file. A collector without free descriptors could not continue."""
    descriptors = len(list(Path("/dev/fd").iterdir()))
    with full_disk(100):
        for _ in range(20):
            with pytest.raises(SpoolError):
                spool.append([delivery("a", 10_000)])
    assert segments(tmp_path) == []
    assert len(list(Path("/dev/fd").iterdir())) == descriptors


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_record_whose_sync_failed_is_not_replayed(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """After a failed fsync, the content of the disk is unknown, so the segment accepts no more records."""
    spool.append([delivery("a")])
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing(number))
        with pytest.raises(SpoolError, match=os.strerror(number)):
            spool.append([delivery("b")])
    spool.append([delivery("c")])
    assert len(segments(tmp_path)) == 2
    spool.close()
    assert contents(tmp_path) == ["a", "c"]


def test_a_delivery_is_refused_until_the_name_of_its_segment_is_durable(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is synced first. If that fails, the next append begins a new segment and syncs again."""
    synced = []
    with monkeypatch.context() as patched:
        patched.setattr(module, "_sync_folder", failing(errno.EIO))
        for _ in range(2):
            with pytest.raises(SpoolError):
                spool.append([delivery("a")])
    assert segments(tmp_path) == []
    monkeypatch.setattr(module, "_sync_folder", synced.append)
    spool.append([delivery("b")])
    assert synced == [tmp_path]


@pytest.mark.parametrize("folder", ["/proc/spool", "/dev/null/spool"])
def test_a_spool_whose_folder_cannot_be_made_refuses_deliveries(folder: str) -> None:
    """The process continues and refuses deliveries."""
    spool = Spool(Path(folder), ROOM)
    assert spool.adopt() == 0
    with pytest.raises(SpoolError, match="cannot be written"):
        spool.append([delivery("a")])
    assert spool.next_part(1) is None


def test_a_record_of_another_version_is_kept_aside(tmp_path: Path) -> None:
    """The record's checksum is right, but this version cannot read the record. The record counts as damage."""
    body = b"\x81\xa1a\x01"
    segment = files.Segment.create(tmp_path, "")
    segment.append(body)
    segment.close()
    record = segment.path.read_bytes()
    assert contents(tmp_path) == []
    assert set_aside(tmp_path) == record


def test_an_event_of_an_earlier_version_is_replayed(tmp_path: Path) -> None:
    """Earlier versions wrote the bytes of a message beside the call that was made from the message."""
    event = {"payload": b"{}", "offset": 1, "message_id": "m", "collection": None, "received_at": None}
    written = {"source": "iterable", "entrance": "iterable-webhook", "refused": [], "received_at": NOW}
    segment = files.Segment.create(tmp_path, "")
    segment.append(msgspec.msgpack.encode([written | {"events": [event | {"original": b"body"}]}]))
    segment.close()
    assert contents(tmp_path) == ["m"]


def test_a_replay_keeps_times_to_the_microsecond(spool: Spool) -> None:
    """Times keep their microseconds and their time zone."""
    there = NOW.astimezone() + timedelta(microseconds=123456)
    spool.append([Delivery("a", "b", [Event(b"{}", 1, "id", None, there)], [], NOW)])
    [part] = replay(spool)
    assert part.deliveries[0].events[0].received_at == there
    assert part.deliveries[0].received_at == NOW
    assert json.dumps(names(part.deliveries)) == '["id"]'
