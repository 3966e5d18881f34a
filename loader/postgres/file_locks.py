"""A folder that several processes work in, and the locks they agree by.

A lock is an flock on a file: the kernel takes it back from a process however it ends, kill -9 included, so there is
no list of processes to keep right. A process that inherits the descriptor keeps the lock.
"""

import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loader.errors import EmbeddedError

logger = logging.getLogger("loader")

POLL_SECONDS = 0.02
TELL_SECONDS = 5.0


class LockedFolder:
    """A folder of small files and locks, which root may use in the home of another user.

    Args:
        path: The folder; `create` makes it.
        locks: The files to lock in it. Only `create` makes them, so that a folder can be deleted while it is in use.
    """

    def __init__(self, path: Path, locks: tuple[str, ...]) -> None:
        self.path = path
        self._locks = locks

    def create(self) -> None:
        """Create the folder, those it lies in and the locks. Root's folders let pass others: PostgreSQL runs as one."""
        missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        for folder in reversed(missing):
            try:
                folder.mkdir()
            except FileExistsError:  # by another command, just now
                continue
            folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
        for name in self._locks:
            os.close(self.open(name, os.O_RDWR | os.O_CREAT))

    def open(self, name: str, flags: int) -> int:
        """Open a file; one created by that is for the owner of the folder only."""
        descriptor = os.open(self.path / name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        if flags & os.O_CREAT and os.geteuid() == 0:
            owner = self.path.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        return descriptor

    def read(self, name: str) -> str:
        """Return what a file holds; nothing when there is no such file."""
        try:
            return (self.path / name).read_text().strip()
        except FileNotFoundError:
            return ""

    def write(self, name: str, text: str) -> None:
        """Write a file, wholly or not at all."""
        unfinished = f"{name}.new"
        with os.fdopen(self.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        (self.path / unfinished).replace(self.path / name)

    def lock(self, name: str, *, wait: float, shared: bool = False) -> int:
        """Lock a file.

        Args:
            name: The file.
            wait: Seconds to wait for others to unlock it.
            shared: Share the lock with others who share it.

        Returns:
            The descriptor that holds the lock; closing it unlocks.

        Raises:
            EmbeddedError: Others held the lock all the time.
        """
        descriptor = self.open(name, os.O_RDWR)
        operation = fcntl.LOCK_NB | (fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        started = time.monotonic()
        told = False
        try:
            while True:
                try:
                    fcntl.flock(descriptor, operation)
                except BlockingIOError:
                    waited = time.monotonic() - started
                    if waited >= wait:
                        raise EmbeddedError(
                            f"Another process has held {self.path / name} for {waited:.0f} s: a loader command that "
                            f"starts or stops the embedded PostgreSQL. `fuser -v {self.path / name}` shows it. Wait "
                            "for it or end it, then run this again."
                        ) from None
                    if waited > TELL_SECONDS and not told:
                        logger.warning("waiting for another process, which holds %s", self.path / name)
                        told = True
                    time.sleep(POLL_SECONDS)  # flock itself cannot wait for a limited time
                else:
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise

    @contextmanager
    def hold(self, name: str, *, wait: float) -> Iterator[int]:
        """Hold the exclusive lock on a file for the length of a block.

        Args:
            name: The file.
            wait: Seconds to wait for others to unlock it.

        Yields:
            The descriptor that holds the lock.
        """
        descriptor = self.lock(name, wait=wait)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def is_free(self, name: str) -> bool:
        """Tell whether nobody holds the exclusive lock on a file."""
        try:
            os.close(self.lock(name, wait=0, shared=True))
        except EmbeddedError:
            return False
        return True

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn an error of the operating system into one that says what to do.

        Raises:
            EmbeddedError: In place of an OSError.
        """
        try:
            yield
        except OSError as error:
            what = f"{error.strerror}: {error.filename}" if error.filename else str(error)
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                advice = "Free some space on that disk, or set LOADER_HOME to a folder on another one."
            elif error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
                advice = "Run as the user the folder belongs to, or set LOADER_HOME to a folder of your own."
            else:
                advice = "Set LOADER_HOME to a folder on a local disk, or DATABASE_URL to a PostgreSQL of yours."
            raise EmbeddedError(f"The embedded PostgreSQL cannot use {self.path}. {what}. {advice}") from error
