"""Writes calls as compressed files of lines, in the layout of Segment's raw logs in S3.

https://segment.com/docs/connections/storage/catalog/aws-s3/#data-format
"""

import gzip
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from loader.destinations.model import Call, Outcome, Reply, chunks
from loader.destinations.options import Options

_FILE_CALLS = 20_000
_FILE_BYTES = 100_000_000
_GZIP_LEVEL = 6


class FilesReceiver:
    """A folder, which may be a mounted or synchronized store of objects.

    A file is written beside its place, and renamed when it is complete. Its name comes from the window and the first
    call, so a file that is written again replaces itself.
    """

    page_events = _FILE_CALLS
    page_bytes = 32_000_000
    batch_calls = _FILE_CALLS

    def __init__(self, options: Options) -> None:
        self._folder = Path(options.folder)

    def admits(self, call: Call) -> bool:  # noqa: ARG002 - the receiver's interface
        """Return True: every call goes."""
        return True

    def batches(self, calls: Sequence[Call]) -> Iterable[Sequence[Call]]:
        """Divide calls into files of at most 100 MB."""
        return chunks(calls, _FILE_CALLS, _FILE_BYTES)

    def send(self, calls: Sequence[Call], *, window: str) -> Reply:
        """Write one file."""
        first = calls[0]
        path = self._folder / "segment-logs" / first.source / day(first.received_at) / file_name(first, window)
        # A killed worker leaves this file, and the repeated batch writes it again.
        unfinished = path.with_name(f".{path.name}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                with gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as packed:
                    for call in calls:
                        packed.write(call.body + b"\n")
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
            _sync(path.parent)
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink()
            return Reply(Outcome.AGAIN, 0, f"{path.parent} cannot be written: {error.strerror or type(error).__name__}")
        return Reply(Outcome.TAKEN)

    def close(self) -> None:
        """Do nothing: no file stays open."""


def file_name(first: Call, window: str) -> str:
    """Return the name of the file that begins with a call."""
    return f"{first.source}.{window}.{first.seq:020d}.gz"


def day(moment: str) -> str:
    """Return the beginning of a day in milliseconds since 1970, as Segment names the folders of days."""
    begun = datetime.fromisoformat(moment).astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return str(int(begun.timestamp()) * 1000)


def _sync(folder: Path) -> None:
    """Make a renamed file durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
