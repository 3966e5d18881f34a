"""The lines of a file: chunks of whole lines with correct offsets and digests, for any file."""

import gzip
import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from loader.errors import FileError
from loader.files.chunks import KEPT_BYTES, Chunk, LineReader, digests_at, read_chunk
from loader.files.streams import open_events

LINES = b'{"a":1}\n{"b":2}\n' * 5000
# Lines of every length, empty lines too, with and without a newline at the end.
CONTENT = st.lists(st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b"")), max_size=20).map(b"\n".join)


def sha256(data: bytes) -> bytes:
    """Return the digest of bytes."""
    return hashlib.sha256(data).digest()


def open_reader(data: bytes, chunk_bytes: int = 16, line_bytes: int = 64) -> LineReader:
    """Return a reader of bytes that arrive in small pieces."""
    return LineReader(io.BufferedReader(io.BytesIO(data), 8), "file", chunk_bytes=chunk_bytes, line_bytes=line_bytes)


@given(CONTENT, st.integers(min_value=1, max_value=100))
def test_chunks_are_the_file_in_whole_lines(content: bytes, chunk_bytes: int) -> None:
    """For any chunk size, the chunks form the file. Each chunk ends with a line and has its offset and digest."""
    reader = open_reader(content, chunk_bytes, line_bytes=1000)
    chunks = list(reader.chunks())
    assert b"".join(chunk.data or b"" for chunk in chunks) == content
    place = 0
    for chunk in chunks:
        assert chunk.data is not None
        assert (chunk.offset, chunk.length, chunk.truncated) == (place, len(chunk.data), 0)
        place += chunk.length
        if chunk.data.endswith(b"\n"):
            assert (chunk.end, chunk.size, chunk.content_digest) == (place, None, None)
        else:
            assert chunk is chunks[-1]
            assert (chunk.end, chunk.size, chunk.content_digest) == (chunk.offset, len(content), sha256(content))
        assert chunk.digest == sha256(content[: chunk.end])
    assert (reader.size, reader.content_digest, reader.damage) == (len(content), sha256(content), "")


@given(CONTENT, st.integers(min_value=1, max_value=100), st.data())
def test_a_reader_continues_at_any_line(content: bytes, chunk_bytes: int, data: st.DataObject) -> None:
    """After a skip to a line, the reader gives the rest of the file, with offsets and digests of the whole file."""
    starts = [0, *(i + 1 for i, byte in enumerate(content) if byte == ord("\n"))]
    start = data.draw(st.sampled_from(starts))
    reader = open_reader(content, chunk_bytes, line_bytes=1000)
    reader.skip(start)
    assert (reader.position, reader.digest) == (start, sha256(content[:start]))
    chunks = list(reader.chunks())
    assert b"".join(chunk.data or b"" for chunk in chunks) == content[start:]
    assert all(chunk.digest == sha256(content[: chunk.end]) for chunk in chunks)
    assert reader.content_digest == sha256(content)


def test_skipping_beyond_the_end_of_a_file_is_an_error() -> None:
    """Offsets of another file are not used."""
    with pytest.raises(FileError, match="became shorter"):
        open_reader(b"abc\n").skip(5)


def test_an_overlong_line_is_left_out_and_the_other_lines_are_kept() -> None:
    """Only the beginning of a line over the limit is kept. The other lines are complete."""
    long = b"x" * 1000
    before, overlong, after = open_reader(b"a\n" + long + b"\nb\n").chunks()
    assert (before.data, after.data) == (b"a\n", b"b\n")
    assert overlong.data == long[: len(overlong.data or b"")]
    assert (overlong.offset, overlong.length + overlong.truncated, overlong.end) == (2, 1001, 1003)
    assert (after.offset, after.end) == (1003, 1005)
    assert overlong.digest == sha256(b"a\n" + long + b"\n")


def test_only_the_beginning_of_an_overlong_line_is_kept() -> None:
    """The quarantine does not fill with files that have no lines."""
    chunk = next(open_reader(b"x" * 500_000 + b"\n", 200_000, 200_000).chunks())
    assert (chunk.length, chunk.truncated) == (KEPT_BYTES, 400_001)


def test_a_file_counts_as_read_up_to_an_overlong_last_line() -> None:
    """Such a line without a newline is the last line. The file counts as read up to the line's beginning."""
    long = b"x" * 1000
    reader = open_reader(b"a\n" + long)
    before, overlong = reader.chunks()
    assert before.data == b"a\n"
    assert (overlong.offset, overlong.end, overlong.digest) == (2, 2, sha256(b"a\n"))
    assert (overlong.size, overlong.content_digest) == (1002, sha256(b"a\n" + long))
    assert (reader.size, reader.content_digest) == (1002, sha256(b"a\n" + long))


def test_a_line_within_the_limit_is_one_chunk() -> None:
    """A line within the limit is one piece, even if it is longer than a chunk."""
    line = b"x" * 63 + b"\n"
    assert [chunk.data for chunk in open_reader(b"a\n" + line + b"b\n").chunks()] == [b"a\n", line, b"b\n"]


def test_chunks_without_data_are_read_from_the_file(tmp_path: Path) -> None:
    """A worker that gets a place reads the same lines."""
    path = tmp_path / "events"
    path.write_bytes(LINES + b"last")
    with path.open("rb") as stream:
        chunks = list(LineReader(stream, str(path), chunk_bytes=1000, with_data=False).chunks())
    assert [chunk.data is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert b"".join(read_chunk(str(path), chunk) for chunk in chunks) == LINES + b"last"


def test_a_chunk_whose_file_is_gone_is_an_error(tmp_path: Path) -> None:
    """The error for a file that changes during the load differs from other errors."""
    path = tmp_path / "events"
    chunk = Chunk(None, 8, 0, 8, sha256(b""))
    with pytest.raises(FileError, match="No such file"):
        read_chunk(str(path), chunk)
    path.write_bytes(b"short\n")
    with pytest.raises(FileError, match="became shorter"):
        read_chunk(str(path), chunk)


# A last line that got its newline


@pytest.mark.parametrize("tail", [b"\n", b"\r\n", b" \n", b"", b" "])
def test_a_landed_line_that_only_got_its_newline_is_skipped(tail: bytes) -> None:
    """A last line that has landed is skipped if only its newline has come since."""
    old, new = b"a\nbcd", b"e\n"
    reader = open_reader(old + tail + (new if tail.endswith(b"\n") else b""), 100)
    reader.skip(2)
    assert reader.skip_ended_line(len(old), sha256(old))
    assert reader.position == len(old + tail)
    assert b"".join(chunk.data or b"" for chunk in reader.chunks()) == (new if tail.endswith(b"\n") else b"")
    assert reader.content_digest == sha256(old + tail + (new if tail.endswith(b"\n") else b""))


@pytest.mark.parametrize("now", [b"a\nbcdX\ne\n", b"a\nbXd\ne\n", b"a\nbc", b"a\n"])
def test_a_line_that_changed_is_read_again(now: bytes) -> None:
    """A last line that has grown or changed is read as a whole."""
    reader = open_reader(now, 100)
    reader.skip(2)
    assert not reader.skip_ended_line(5, sha256(b"a\nbcd"))
    assert b"".join(chunk.data or b"" for chunk in reader.chunks()) == now[2:]
    assert reader.content_digest == sha256(now)


# Damage


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_a_file_that_was_cut_short_yields_its_good_part(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """Whole lines before the cut are read. The piece of a line at the cut is not read, and the damage is reported."""
    lines = b"".join(hashlib.sha256(b"%d" % i).hexdigest().encode() + b"\n" for i in range(20_000))
    packed = pack(lines)
    path = tmp_path / "events"
    path.write_bytes(packed[: len(packed) // 2])
    with open_events(str(path)) as (stream, _):
        reader = LineReader(stream, str(path), chunk_bytes=10_000)
        read = b"".join(chunk.data or b"" for chunk in reader.chunks())
    assert reader.damage
    assert lines.startswith(read)
    assert read.endswith(b"\n")
    assert 0.2 < len(read) / len(lines) < 0.6


def test_a_compressed_file_cut_at_the_end_of_a_line_is_damaged(tmp_path: Path) -> None:
    """A compressed file tells whether it is complete, so a cut between two lines is reported too."""
    zstd = zstandard.ZstdCompressor(write_checksum=True).compress(LINES)
    for packed in (gzip.compress(LINES)[:-8], zstd[:-4]):
        (tmp_path / "events").write_bytes(packed)
        with open_events(str(tmp_path / "events")) as (stream, _):
            reader = LineReader(stream, "events")
            assert b"".join(chunk.data or b"" for chunk in reader.chunks()) == LINES
        assert reader.damage


def test_garbage_after_a_compressed_file_is_damage(tmp_path: Path) -> None:
    """The complete part is read, and the bytes after it are reported."""
    for packed in (gzip.compress(LINES), zstandard.compress(LINES)):
        (tmp_path / "events").write_bytes(packed + b"garbage")
        with open_events(str(tmp_path / "events")) as (stream, _):
            reader = LineReader(stream, "events")
            assert b"".join(chunk.data or b"" for chunk in reader.chunks()) == LINES
        assert reader.damage


# Digests at positions


@given(CONTENT, st.sets(st.integers(min_value=0, max_value=300)))
def test_a_digest_covers_all_bytes_before_its_position(content: bytes, positions: set[int]) -> None:
    """Each position within the file has the digest of the bytes before it. A near end of the file is found."""
    digests, end = digests_at(io.BufferedReader(io.BytesIO(content), 8), positions)
    reached = {position for position in positions if position <= len(content)}
    whole = len(content) <= max(positions, default=0)
    assert end == (len(content) if whole else None)
    assert digests == {at: sha256(content[:at]) for at in reached | ({len(content)} if whole else set())}


def test_digests_of_a_damaged_file_end_at_the_damage(tmp_path: Path) -> None:
    """Bytes that cannot be read do not count."""
    (tmp_path / "events").write_bytes(gzip.compress(LINES)[:-8])
    with open_events(str(tmp_path / "events")) as (stream, _):
        digests, end = digests_at(stream, {10, len(LINES), len(LINES) + 1})
    assert end == len(LINES)
    assert digests == {at: sha256(LINES[:at]) for at in (10, len(LINES))}
