"""Blobs as files, in the form of an OCI image layout.

<root>/blobs/sha256/<hex>        complete and verified, never changed
<root>/blobs/sha512/<hex>
<root>/staging/…                 arriving; see staging.py
<root>/quarantine/<hex>.<time>   found to be wrong, kept for the operator

Whoever reads a blob holds a shared ``flock`` on its file, whoever removes one needs the exclusive
one: what is being read stays. The lock belongs to the open file, duplicates of its descriptor
included, and ends with the last of them.
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

from regmirror.blobs.base import PIECE, StoredBlob
from regmirror.errors import DigestInvalid
from regmirror.files import DIRECTORY_MODE, make_directory, tighten, tighten_directory
from regmirror.oci.names import Digest

ALGORITHMS = ("sha256", "sha512")
BATCH: Final = 1000  # blobs listed at once
SYNCS: Final = 4  # threads that make files durable or remove them; nobody else waits for these


class LocalBlob:
    """An open file; readable however long, even if it is deleted meanwhile."""

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
    """A stored blob that nobody reads, locked so that it can be removed; ``close`` it after use.

    Its calls wait for the disk: use them in a thread.
    """

    def __init__(self, path: Path, descriptor: int, quarantine: Path) -> None:
        self._path, self._descriptor, self._quarantine = path, descriptor, quarantine
        self.size = os.fstat(descriptor).st_size

    def unlink(self) -> None:
        """Remove the file, unless it has been replaced by another one meanwhile."""
        taken = self._quarantine / f".{self._path.name}.{time.time_ns()}"
        make_directory(self._quarantine)
        if _take(self._path, taken, self._descriptor):
            taken.unlink()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def read_cached(descriptor: int, buffer: bytearray, offset: int) -> int:
    """Fill ``buffer`` with what the kernel holds in memory; how many bytes that are. Never waits."""
    try:
        return os.preadv(descriptor, [buffer], offset, os.RWF_NOWAIT)
    except OSError:  # nothing of it, or a file system that cannot tell
        return 0


def count_cached(descriptor: int, offset: int, count: int, step: int) -> int:
    """How many of ``count`` bytes from ``offset`` on the kernel seems to hold in memory.

    The last byte of each ``step`` is tried. All of them, if the file system cannot tell.
    """
    buffer, found = [bytearray(1)], 0
    try:
        for end in (*range(step, count, step), count):
            os.preadv(descriptor, buffer, offset + end - 1, os.RWF_NOWAIT)
            found = end
    except BlockingIOError:
        return found
    except OSError:  # reading says what is wrong
        return count
    return found


async def read_pieces(descriptor: int, start: int, stop: int) -> AsyncIterator[bytes]:
    """The bytes in pieces; a thread reads what the kernel does not hold in memory: a cold disk must
    not stop the event loop.
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
    """Content-addressed files below ``root`` (created on demand)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._directories = {name: root / "blobs" / name for name in ALGORITHMS}
        self._prefixes = {name: f"{directory}/" for name, directory in self._directories.items()}
        self._quarantine = root / "quarantine"
        self._syncs = ThreadPoolExecutor(SYNCS, "sync")

    def prepare(self) -> None:
        """Create the directories, and close those of an older version to other users.

        Raises OSError where that is not allowed.
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
        """One ``open``, ``flock`` and ``fstat``, on the calling thread: the hot path.

        Raises OSError if there is a file that cannot be opened.
        """
        try:
            path = f"{self._prefixes[digest.algorithm]}{digest.encoded}"  # a Path costs more than the call
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:  # noqa: SIM105  # ``suppress`` costs as much as the call
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # somebody removes it: it can be read to its end all the same
            pass
        return LocalBlob(descriptor)

    def read_cached(self, digest: Digest, size: int) -> bytearray | None:
        """A whole blob of just that size, if all of it is in the kernel's memory; never waits.

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
        """Whether there is a file of that name."""
        return self.path(digest).exists()

    async def find(self, digest: Digest) -> LocalBlob | None:
        return self.open(digest)

    async def commit(self, staged: Path, digest: Digest) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._syncs, self._adopt, staged, self.path(digest))

    def _adopt(self, staged: Path, final: Path) -> None:
        _sync(staged)
        staged.replace(final)
        try:
            _sync(final.parent)
        except OSError:
            with suppress(OSError):  # all or nothing: it might not be there after a crash
                final.unlink()
            raise

    async def delete(self, digest: Digest) -> int | None:
        return await asyncio.get_running_loop().run_in_executor(self._syncs, self._delete, digest)

    def _delete(self, digest: Digest) -> int | None:
        removable = self.lock_for_removal(digest)
        if removable is None:
            return None
        try:
            removable.unlink()
        finally:
            removable.close()
        return removable.size

    def lock_for_removal(self, digest: Digest) -> Removable | None:
        """The blob, locked; None if it is being read or not there. Waits for the disk."""
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

    async def quarantine(self, digest: Digest, descriptor: int | None = None) -> bool:
        """With ``descriptor`` only if that is still the stored file. Returns whether it has gone."""
        return _take(self.path(digest), self._quarantine / f"{digest.encoded}.{time.time_ns()}", descriptor)

    def sweep_quarantine(self, older_than: float) -> None:
        """Remove what was put aside before that time (wall-clock seconds)."""
        for path in self._quarantine.iterdir():
            with suppress(FileNotFoundError, IsADirectoryError):
                if path.stat().st_ctime < older_than:
                    path.unlink()

    async def iterate(self) -> AsyncIterator[StoredBlob]:
        async for page in self.pages(BATCH):
            for blob in page:
                yield blob

    async def pages(self, count: int) -> AsyncIterator[list[StoredBlob]]:
        """What ``iterate`` tells, ``count`` at a time."""
        found = self.scan()
        while page := await asyncio.to_thread(lambda: list(islice(found, count))):
            yield page

    def scan(self) -> Iterator[StoredBlob]:
        """What ``iterate`` tells, on the calling thread; in constant memory."""
        for algorithm, directory in self._directories.items():
            with suppress(FileNotFoundError), os.scandir(directory) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError, DigestInvalid):
                        digest = Digest(f"{algorithm}:{entry.name}")
                        status = entry.stat()
                        yield StoredBlob(digest, status.st_size, status.st_mtime)


def ensure_directory(directory: Path) -> None:
    """Create it if need be; raises OSError if that fails or if it cannot be written."""
    make_directory(directory)
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(directory))


def _take(path: Path, target: Path, descriptor: int | None) -> bool:
    """Move a file away if it is the open one; whether it was.

    It is moved first and compared then: between a comparison and a move another process may put
    a good file in its place.
    """
    try:
        path.rename(target)
    except FileNotFoundError:
        return False
    if descriptor is None or os.path.samestat(target.stat(), os.fstat(descriptor)):
        return True
    with suppress(FileExistsError):  # a third one, as good as this
        os.link(target, path)
    target.unlink()
    return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
