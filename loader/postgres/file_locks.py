"""Reads, writes and locks the files of a folder that several processes share.

A lock is an flock on a file. The kernel releases the lock when a process ends, even after kill -9, so no list of
processes has to be kept. A process that inherits the descriptor keeps the lock.
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
    """A folder of small files and locks; root may also use the folder of another user.

    Args:
        path: The folder; `create` creates it.
        locks: The names of the lock files. Only `create` creates them, so that a folder in use can be deleted.
    """

    def __init__(self, path: Path, locks: tuple[str, ...]) -> None:
        self.path = path
        self._locks = locks

    def create(self) -> None:
        """Create the folder, its parents and the lock files.

        Folders that root creates can be entered by other users, because PostgreSQL runs as another user then.
        """
        missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        for folder in reversed(missing):
            try:
                folder.mkdir()
            except FileExistsError:  # another command has just created it
                continue
            folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
        for name in self._locks:
            os.close(self.open(name, os.O_RDWR | os.O_CREAT))

    def open(self, name: str, flags: int) -> int:
        """Open a file of the folder; a new file belongs to the folder's owner, and only the owner may read it."""
        descriptor = os.open(self.path / name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        if flags & os.O_CREAT and os.geteuid() == 0:
            owner = self.path.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        return descriptor

    def read(self, name: str) -> str:
        """Return the text of a file without surrounding spaces; an empty text if the file is missing."""
        try:
            return (self.path / name).read_text().strip()
        except FileNotFoundError:
            return ""

    def write(self, name: str, text: str) -> None:
        """Write a file; a failure keeps the text of before."""
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
            wait: Seconds to wait for other processes to unlock it.
            shared: Share the lock with other processes that share it.

        Returns:
            The descriptor that holds the lock; closing the descriptor unlocks the file.

        Raises:
            EmbeddedError: Other processes held the lock all the time.
        """
        descriptor = self.open(name, os.O_RDWR)
        operation = fcntl.LOCK_NB | (fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        started = time.monotonic()
        is_told = False
        try:
            while True:
                try:
                    fcntl.flock(descriptor, operation)
                except BlockingIOError:
                    waited = time.monotonic() - started
                    if waited >= wait:
                        raise EmbeddedError(
                            f"Another process has held {self.path / name} for {waited:.0f} s: a loader command that "
                            f"starts or stops the embedded PostgreSQL. `fuser -v {self.path / name}` shows the "
                            "process. Wait until that process ends or end the process, then run this again."
                        ) from None
                    if waited > TELL_SECONDS and not is_told:
                        logger.warning("waiting for another process, which holds %s", self.path / name)
                        is_told = True
                    time.sleep(POLL_SECONDS)  # flock has no time limit for its wait
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
            wait: Seconds to wait for other processes to unlock it.

        Yields:
            The descriptor that holds the lock.

        Raises:
            EmbeddedError: Other processes held the lock all the time.
        """
        descriptor = self.lock(name, wait=wait)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def is_free(self, name: str) -> bool:
        """Return whether no process holds the exclusive lock on a file."""
        try:
            os.close(self.lock(name, wait=0, shared=True))
        except EmbeddedError:
            return False
        return True

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Replace an error of the operating system by a `LoaderError` that advises the person.

        Raises:
            EmbeddedError: In place of an OSError.
        """
        try:
            yield
        except OSError as error:
            problem = f"{error.strerror}: {error.filename}" if error.filename else str(error)
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                advice = "Free some space on that disk, or set LOADER_HOME to a folder on another disk."
            elif error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
                advice = "Run as the user the folder belongs to, or set LOADER_HOME to a folder of your own."
            else:
                advice = "Set LOADER_HOME to a folder on a local disk, or DATABASE_URL to a PostgreSQL of yours."
            raise EmbeddedError(f"The embedded PostgreSQL cannot use {self.path}. {problem}. {advice}") from error
