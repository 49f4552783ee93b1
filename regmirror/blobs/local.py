"""Blobs as files, in the form of an OCI image layout.

<root>/blobs/sha256/<hex>        complete and verified, never changed
<root>/blobs/sha512/<hex>
<root>/staging/…                 downloads, see ``staging``
<root>/quarantine/<hex>.<time>   content that does not match its digest, kept for the operator

A reader holds a shared ``flock`` on the file, and a removal needs the exclusive one, so that a blob
is not removed while it is read. The lock belongs to the open file: it ends when the last duplicate
of the descriptor is closed.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

from regmirror.blobs.base import PIECE, BlobEntry
from regmirror.errors import DigestInvalid
from regmirror.files import DIRECTORY_MODE, make_directory, tighten, tighten_directory
from regmirror.oci.names import Digest

ALGORITHMS = ("sha256", "sha512")
SYNCS: Final = 4  # threads that make files durable; no other work waits for them


class LocalBlob:
    """An open file, which stays readable if it is deleted meanwhile."""

    __slots__ = ("_descriptor", "size")

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    @property
    def descriptor(self) -> int:
        return self._descriptor

    async def wait_until_readable(self, offset: int) -> int:
        return self.size

    async def read(self, start: int, stop: int) -> AsyncIterator[bytes]:
        async for piece in read_pieces(self._descriptor, start, stop):
            yield piece

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Removable:
    """A file that nobody reads, locked exclusively."""

    def __init__(self, path: Path, descriptor: int, quarantine: Path) -> None:
        self._path, self._descriptor, self._quarantine = path, descriptor, quarantine
        self.size = os.fstat(descriptor).st_size

    def unlink(self) -> None:
        taken = self._quarantine / f".{self._path.name}.{time.time_ns()}"
        make_directory(self._quarantine)
        if _take(self._path, taken, self._descriptor):
            taken.unlink()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class VerifiableFile:
    """A file opened for verification."""

    def __init__(self, path: Path, descriptor: int, quarantined: Path) -> None:
        self._path, self._descriptor, self._quarantined = path, descriptor, quarantined

    @property
    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def read(self, start: int, count: int) -> bytes:
        data = os.pread(self._descriptor, count, start)
        os.posix_fadvise(self._descriptor, start, len(data), os.POSIX_FADV_DONTNEED)
        return data

    def quarantine(self) -> bool:
        return _take(self._path, self._quarantined, self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def read_cached(descriptor: int, buffer: bytearray, offset: int) -> int:
    """Fill ``buffer`` from the page cache, and return the number of bytes. Never waits for the disk."""
    try:
        return os.preadv(descriptor, [buffer], offset, os.RWF_NOWAIT)
    except OSError:  # nothing is cached, or the file system does not support the flag
        return 0


def count_cached(descriptor: int, offset: int, count: int, step: int) -> int:
    """Estimate how many of ``count`` bytes from ``offset`` on are in the page cache.

    Reads the last byte of each ``step``. Returns ``count`` if the file system does not support it.
    """
    buffer, found = [bytearray(1)], 0
    try:
        for end in (*range(step, count, step), count):
            os.preadv(descriptor, buffer, offset + end - 1, os.RWF_NOWAIT)
            found = end
    except BlockingIOError:
        return found
    except OSError:  # the caller's own read will raise the error
        return count
    return found


async def read_pieces(descriptor: int, start: int, stop: int) -> AsyncIterator[bytes]:
    """Yield the bytes in pieces. A thread reads those that are not in the page cache, so that a slow
    disk does not block the event loop.
    """
    buffer = bytearray(min(PIECE, stop - start))
    while start < stop:
        count = min(PIECE, stop - start)
        if read_cached(descriptor, buffer, start) >= count:
            piece = bytes(memoryview(buffer)[:count])
        else:
            piece = await asyncio.to_thread(os.pread, descriptor, count, start)
        if not piece:
            raise OSError(f"the file ends at {start}, {stop - start} bytes early")
        start += len(piece)
        yield piece


class LocalBlobStore:
    """Content-addressed files below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._directories = {name: root / "blobs" / name for name in ALGORITHMS}
        self._prefixes = {name: f"{directory}/" for name, directory in self._directories.items()}
        self._quarantine = root / "quarantine"
        self._syncs = ThreadPoolExecutor(SYNCS, "sync")

    def prepare(self) -> None:
        """Create the directories, and deny other users access to those of an older version.

        Raises OSError.
        """
        self.root.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        ensure_directory(self.root)
        blobs = self.root / "blobs"
        make_directory(blobs)
        for directory in (*self._directories.values(), self._quarantine):
            ensure_directory(directory)
            tighten_directory(directory)
        tighten(blobs)

    def path(self, digest: Digest) -> Path:
        return self._directories[digest.algorithm] / digest.encoded

    def open(self, digest: Digest) -> LocalBlob | None:
        """Return the open file; one ``open``, ``flock`` and ``fstat``, because this is the hot path.

        Raises OSError if there is a file that cannot be opened.
        """
        try:
            path = f"{self._prefixes[digest.algorithm]}{digest.encoded}"  # a Path costs more than the call
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:  # noqa: SIM105  # ``suppress`` costs as much as the call
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # it is being removed, and stays readable for this reader
            pass
        return LocalBlob(descriptor)

    def read_cached(self, digest: Digest, size: int) -> bytearray | None:
        """Return the blob if it has just that size and is in the page cache. Never waits.

        Raises OSError if there is a file that cannot be opened.
        """
        blob = self.open(digest)
        if blob is None:
            return None
        try:
            data = bytearray(size)
            is_whole = blob.size == size and read_cached(blob.descriptor, data, 0) == size
        finally:
            blob.close()
        return data if is_whole else None

    def exists(self, digest: Digest) -> bool:
        """Whether there is a file for the digest."""
        return self.path(digest).exists()

    def is_stored_as(self, digest: Digest, descriptor: int) -> bool:
        """Whether the open file is the stored blob."""
        return is_at(self.path(digest), descriptor)

    async def commit(self, staged: Path, digest: Digest) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._syncs, self._commit, staged, self.path(digest))

    def _commit(self, staged: Path, final: Path) -> None:
        _sync(staged)
        staged.replace(final)
        try:
            _sync(final.parent)
        except OSError:
            with suppress(OSError):  # all or nothing: after a crash the rename may be undone
                final.unlink()
            raise

    def lock_for_removal(self, digest: Digest) -> Removable | None:
        """Return the file with its exclusive lock; None if it is being read, or not there."""
        path = self.path(digest)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return Removable(path, descriptor, self._quarantine)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise

    async def quarantine(self, digest: Digest) -> bool:
        """Move the file to the quarantine directory; False if there is none."""
        return _take(self.path(digest), self._quarantine_path(digest), None)

    def _quarantine_path(self, digest: Digest) -> Path:
        return self._quarantine / f"{digest.encoded}.{time.time_ns()}"

    def open_for_verification(self, digest: Digest) -> VerifiableFile | None:
        """Open the file without a lock. Raises OSError if it cannot be opened."""
        path = self.path(digest)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        return VerifiableFile(path, descriptor, self._quarantine_path(digest))

    def sweep_quarantine(self, older_than: float) -> None:
        """Remove the files that were quarantined before that time (wall-clock seconds)."""
        for path in self._quarantine.iterdir():
            with suppress(FileNotFoundError, IsADirectoryError):
                if path.stat().st_ctime < older_than:
                    path.unlink()

    async def pages(self, count: int) -> AsyncIterator[list[BlobEntry]]:
        """Yield lists of ``count`` entries of ``scan``, read in a thread."""
        found = self.scan()
        while page := await asyncio.to_thread(lambda: list(islice(found, count))):
            yield page

    def scan(self) -> Iterator[BlobEntry]:
        """Yield an entry for each file whose name is a digest, in constant memory."""
        for algorithm, directory in self._directories.items():
            with suppress(FileNotFoundError), os.scandir(directory) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError, DigestInvalid):
                        digest = Digest(f"{algorithm}:{entry.name}")
                        status = entry.stat()
                        yield BlobEntry(digest, status.st_size, status.st_mtime)


def ensure_directory(directory: Path) -> None:
    """Create the directory if it is missing; raises OSError if it cannot be written."""
    make_directory(directory)
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(directory))


def is_at(path: Path, descriptor: int) -> bool:
    """Whether ``path`` names the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _take(path: Path, target: Path, descriptor: int | None) -> bool:
    """Move a file to ``target`` if it is the open one, or any file if ``descriptor`` is None.

    Returns whether it was moved. It is moved first and compared then, because between a comparison
    and a move another process may put a good file in its place.
    """
    try:
        path.rename(target)
    except FileNotFoundError:
        return False
    if descriptor is None or os.path.samestat(target.stat(), os.fstat(descriptor)):
        return True
    with suppress(FileExistsError):  # a third process has stored the blob again
        os.link(target, path)
    target.unlink()
    return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
