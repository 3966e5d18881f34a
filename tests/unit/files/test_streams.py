"""Files of events: the search for files, and their formats by their bytes."""

import gzip
import io
import os
import tracemalloc
from pathlib import Path

import pytest
import zstandard

from loader.errors import FileError
from loader.files.streams import (
    CALLS,
    READ_BYTES,
    _Unpacker,
    find_files,
    is_regular,
    open_bytes,
    open_events,
    printable,
    read_head,
)

LINES = b'{"a":1}\n{"b":2}\n' * 5000


def head_of(path: Path) -> bytes:
    """Return the head of a file."""
    with open_events(str(path)) as (stream, _):
        return read_head(stream)


def read_events(path: Path) -> bytes:
    """Return all decompressed bytes of a file."""
    with open_events(str(path)) as (stream, _):
        return stream.read()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of files and folders, some of them hidden."""
    for name in ("b.ndjson", "a.ndjson", "deep/er/c.gz", ".hidden", "deep/.git/config", "deep/er/.swp"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(LINES)
    return tmp_path


# Finding files


def found(paths: list[str]) -> list[str]:
    """Return the files of tracking calls that paths name."""
    return find_files(paths, CALLS).paths


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("events.ndjson", True),
        ("events.jsonl.gz", True),
        ("EVENTS.JSON.ZST", True),
        ("1456300800000.1a2b3c4d5e.gz", True),
        ("1456300800000.abcdefabcd.gz", True),
        ("events.zst", True),
        ("events.csv", False),
        ("events.csv.gz", False),
        ("backup.tar.gz", False),
        ("dump.sql.zst", False),
        ("README", False),
        ("README.md", False),
        ("app.log", False),
        ("photo.png", False),
    ],
)
def test_d3_names_say_which_files_of_a_folder_hold_calls(name: str, fits: bool) -> None:
    """Lines of JSON and Segment's raw logs hold calls. Files with other endings do not."""
    assert CALLS.fits(f"folder/{name}") is fits


def test_d3_a_search_of_a_folder_takes_only_names_of_event_files(folder: Path) -> None:
    """The other files are listed. A file that is named or matched by a pattern is taken, whatever its name is."""
    for name in ("notes.txt", "deep/app.log"):
        (folder / name).write_bytes(LINES)
    searched = find_files([str(folder)], CALLS)
    assert searched.paths == [f"{folder}/{name}" for name in ("a.ndjson", "b.ndjson", "deep/er/c.gz")]
    assert searched.left_out == [f"{folder}/deep/app.log", f"{folder}/notes.txt"]
    named = find_files([str(folder), f"{folder}/*.txt", f"{folder}/deep/app.log"], CALLS)
    assert (len(named.paths), named.left_out) == (5, [])


def test_d3_a_folder_without_names_of_event_files_is_an_error(tmp_path: Path) -> None:
    """The error names the files in the folder and the names of event files."""
    for name in "abcd":
        (tmp_path / f"{name}.csv").write_bytes(LINES)
    with pytest.raises(FileError, match=r"\.ndjson.*a\.csv.*and 1 more\. Name these files"):
        found([str(tmp_path)])


def test_a_folder_is_searched_to_any_depth_in_the_order_of_names(folder: Path) -> None:
    """Files in folders have a fixed order. Hidden files and folders are skipped."""
    assert found([str(folder)]) == [f"{folder}/{name}" for name in ("a.ndjson", "b.ndjson", "deep/er/c.gz")]


def test_a_pattern_finds_all_matching_files_and_folders(folder: Path) -> None:
    """Some shells and schedulers do not expand patterns. Matched folders are searched."""
    assert found([f"{folder}/*.ndjson"]) == [f"{folder}/a.ndjson", f"{folder}/b.ndjson"]
    assert found([f"{folder}/**/*.gz"]) == [f"{folder}/deep/er/c.gz"]
    assert found([f"{folder}/d*"]) == [f"{folder}/deep/er/c.gz"]


def test_files_come_in_the_order_given_and_once(folder: Path) -> None:
    """A file that is named twice is loaded once."""
    assert found([f"{folder}/b.ndjson", str(folder), "-"]) == [
        f"{folder}/b.ndjson",
        f"{folder}/a.ndjson",
        f"{folder}/deep/er/c.gz",
        "-",
    ]


def test_a_file_may_be_called_like_a_pattern(tmp_path: Path) -> None:
    """A file whose name has brackets is that file."""
    path = tmp_path / "events[1].ndjson"
    path.write_bytes(LINES)
    assert found([str(path)]) == [str(path)]


def test_a_pattern_without_a_match_is_an_error(folder: Path) -> None:
    """A pattern without a match does not count as success."""
    with pytest.raises(FileError, match="No file matches"):
        found([f"{folder}/*.csv"])


def test_a_folder_without_files_is_an_error(tmp_path: Path) -> None:
    """A folder with hidden files only has no files."""
    (tmp_path / ".hidden").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="contains no files"):
        found([str(tmp_path)])


def test_an_empty_path_is_an_error() -> None:
    """An unset variable does not mean the current folder."""
    with pytest.raises(FileError, match="path is empty"):
        found([""])


def test_a_missing_file_is_an_error_only_when_it_is_opened(tmp_path: Path) -> None:
    """A missing file does not stop the other files. Its own load fails with its name."""
    missing = str(tmp_path / "missing.ndjson")
    assert found([missing]) == [missing]
    with pytest.raises(FileError, match=r"Cannot read .*missing.ndjson: No such file"), open_events(missing):
        pass


def test_opening_a_folder_as_a_file_is_an_error(tmp_path: Path) -> None:
    """The error of a file that cannot be read gives the reason."""
    with pytest.raises(FileError, match="Is a directory"), open_events(str(tmp_path)):
        pass


def test_pipes_are_no_regular_files(tmp_path: Path) -> None:
    """Only a regular file can be read twice."""
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    assert is_regular(str(tmp_path / "file"))
    for path in (str(tmp_path / "pipe"), str(tmp_path), str(tmp_path / "missing"), "-"):
        assert not is_regular(path)


def test_file_names_that_are_not_utf8_can_be_printed() -> None:
    """A name that is not UTF-8 is shown with replacement characters."""
    assert printable(os.fsdecode(b"caf\xe9.ndjson")) == "caf\ufffd.ndjson"
    assert printable("café.ndjson") == "café.ndjson"


# Formats

PACKED = {
    "plain": LINES,
    "gzip": gzip.compress(LINES),
    "gzip in members": b"".join(gzip.compress(LINES[i : i + 10]) for i in range(0, len(LINES), 10)),
    "zstd": zstandard.compress(LINES),
    "zstd in frames": zstandard.compress(LINES[:10]) + zstandard.compress(b"") + zstandard.compress(LINES[10:]),
}


@pytest.mark.parametrize("packed", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("name", ["events.gz", "events.zst", "events.ndjson", "events"])
def test_the_bytes_of_a_file_decide_its_compression(tmp_path: Path, packed: bytes, name: str) -> None:
    """The bytes decide on decompression, not the name. Each form gives the same lines and digests."""
    path, plain = tmp_path / name, tmp_path / "plain"
    path.write_bytes(packed)
    plain.write_bytes(LINES)
    assert read_events(path) == LINES
    assert head_of(path) == head_of(plain)


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    """An empty file has no lines, compressed or not."""
    for data in (b"", gzip.compress(b""), zstandard.compress(b"")):
        (tmp_path / "empty").write_bytes(data)
        assert read_events(tmp_path / "empty") == b""


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"PK\x03\x04rest", "a zip archive"),
        (b"PAR1rest", "a Parquet file"),
        (b"%PDF-1.7", "a PDF document"),
        (b"\x89PNG\r\n", "a picture"),
        (b"SQLite format 3\0", "an SQLite database"),
        (b"BZh91AY", "compressed with bzip2"),
        (b"\xfd7zXZ\0", "compressed with xz"),
        ('{"a":1}'.encode("utf-16"), "UTF-16"),
        (b"\x7fELF\n\0", "a binary file"),
        ('{"a":1}\n'.encode("utf-16-le"), "a binary file"),
        (gzip.compress(b"PAR1rest"), "a Parquet file"),
        (gzip.compress(gzip.compress(LINES)), "a binary file"),
        (zstandard.compress(b"\x7fELF\0"), "a binary file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_refusal_of_a_foreign_file_names_its_format(tmp_path: Path, data: bytes, what: str) -> None:
    """A file in another format is refused by the name of its format. Its lines do not go to quarantine."""
    path = tmp_path / "events.ndjson"
    path.write_bytes(data)
    with pytest.raises(FileError, match=f"events.ndjson is {what}"):
        read_events(path)


@pytest.mark.parametrize("start", [b'{"a":1}\n', b'\n\xef\xbb\xbf {"a":1}\n'])
def test_a_file_with_nul_bytes_in_one_line_is_accepted(tmp_path: Path, start: bytes) -> None:
    """A line with a NUL byte among lines of JSON is refused alone."""
    path = tmp_path / "events.ndjson"
    path.write_bytes(start + b"\0\0\n")
    assert read_events(path) == path.read_bytes()


@pytest.mark.parametrize("magic", [b"\x1f\x8b", b"\x28\xb5\x2f\xfd"], ids=["gzip", "zstd"])
def test_a_file_damaged_at_its_beginning_is_refused(tmp_path: Path, magic: bytes) -> None:
    """The error names the file, and nothing is loaded."""
    path = tmp_path / "events.gz"
    path.write_bytes(magic + b"\xff" * 50)
    with pytest.raises(FileError, match=r"events.gz.*damaged"):
        read_events(path)


# The head


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"a":1}\n', b'{"a":1}\n{"b":2}\n'),
        (b'{"a":1}', b'{"a":1}\n{"b":2}\n'),
        (b'{"a":1}', b'{"a":1}\r\n'),
        (b"x" * 300, b"x" * 400 + b"\n"),
        (b"\n", b"\n\n"),
    ],
)
def test_a_file_keeps_its_head_when_it_grows(tmp_path: Path, before: bytes, after: bytes) -> None:
    """A file is found again after it has grown, however short it was."""
    path = tmp_path / "events"
    path.write_bytes(before)
    head = head_of(path)
    path.write_bytes(after)
    assert head_of(path) == head


def test_files_with_different_first_lines_have_different_heads(tmp_path: Path) -> None:
    """Files with different first lines have different heads."""
    heads = set()
    for number in range(3):
        (tmp_path / "events").write_bytes(b'{"a":%d}\n{"b":2}\n' % number)
        heads.add(head_of(tmp_path / "events"))
    assert len(heads) == 3


def test_a_file_cut_short_has_the_head_of_the_whole_file(tmp_path: Path) -> None:
    """A file that was cut short is found again when the whole file arrives."""
    packed = gzip.compress(LINES, compresslevel=0)
    (tmp_path / "whole").write_bytes(packed)
    (tmp_path / "part").write_bytes(packed[:40])
    assert head_of(tmp_path / "part") == head_of(tmp_path / "whole")


# Maliciously compressed data


class CountingDecompressor:
    """A decompressor of zstd that counts its input bytes."""

    given = 0

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor().decompressobj()

    def decompress(self, data: memoryview) -> bytes:
        """Decompress, and count the bytes."""
        CountingDecompressor.given += len(data)
        return self._decompressor.decompress(data)

    @property
    def eof(self) -> bool:
        """Return whether the frame has ended."""
        return self._decompressor.eof

    @property
    def unused_data(self) -> bytes:
        """Return the bytes after the frame."""
        return self._decompressor.unused_data


def test_c6_a_small_file_that_becomes_huge_takes_little_memory(tmp_path: Path) -> None:
    """A few kilobytes of zstd become 512 MiB, and only a small part is in memory at a time."""
    size = 512 << 20
    compressor = zstandard.ZstdCompressor().compressobj()
    zeros = bytes(1 << 20)
    path = tmp_path / "bomb.zst"
    path.write_bytes(b"".join(compressor.compress(zeros) for _ in range(size >> 20)) + compressor.flush())
    assert path.stat().st_size < 100_000
    buffer = bytearray(READ_BYTES)
    found = 0
    tracemalloc.start()
    try:
        with open_bytes(str(path)) as (stream, _):
            while count := stream.readinto1(buffer):
                found += count
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == size
    assert peak < 40 << 20


def test_c6_many_empty_frames_are_each_read_once() -> None:
    """The bytes after a frame are not read again for each later frame."""
    packed = zstandard.compress(b"") * 20_000 + zstandard.compress(LINES)
    CountingDecompressor.given = 0
    with io.BufferedReader(_Unpacker(io.BytesIO(packed), CountingDecompressor, 512)) as stream:
        assert stream.read() == LINES
    # A frame is tried with a piece of 512 bytes, whatever follows it.
    assert CountingDecompressor.given < len(packed) + 20_001 * 512
