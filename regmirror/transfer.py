"""How a blob gets from its upstream into its file, by this process or by another one.

The process that holds the lock writes: it resumes what an earlier writer left, asks the
upstream for the rest by ``Range``, hashes and writes in bulk threads, verifies, and has the
store adopt the file. A process without the lock watches the file grow; when the lock becomes
free it finds the blob adopted, or the writer's reason for giving up, or takes over.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from regmirror import errors
from regmirror.blobs.local import LocalBlobStore
from regmirror.blobs.staging import Note, StagedFile, Staging
from regmirror.errors import RegistryError, Unavailable, UpstreamError, UpstreamLied
from regmirror.events import Emit, VerificationFailed
from regmirror.inflight import Body, Download
from regmirror.names import Digest, Hasher

POLL: Final = 0.01  # seconds between looks at a file that another process writes
READ_BACK: Final = 4 * 1024 * 1024  # bytes a read when hashing what an earlier writer left
PAUSES: Final = (0.1, 0.5, 2.0)  # seconds before each retry that follows one without progress


@dataclass(frozen=True)
class Workshop:
    """What every transfer works with.

    ``record`` is told of each adopted blob; ``bulk`` are the threads that write and hash.
    """

    staging: Staging
    store: LocalBlobStore
    record: Callable[[Digest, int], Awaitable[None]]
    emit: Emit
    bulk: ThreadPoolExecutor
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class _Writer:
    """The end of a growing file: what is written is hashed, in order."""

    def __init__(self, workshop: Workshop, staged: StagedFile, hasher: Hasher) -> None:
        self._bulk = workshop.bulk
        self._descriptor = staged.descriptor
        self._hasher = hasher
        self.offset = 0

    async def read_back(self, size: int) -> None:
        """Hash the ``size`` bytes that are already there."""
        loop = asyncio.get_running_loop()
        while self.offset < size:
            await loop.run_in_executor(self._bulk, self._hash_piece, min(READ_BACK, size - self.offset))

    async def append(self, piece: bytes) -> None:
        """Write and hash a piece in a thread, which is waited for even when this is cancelled."""
        writing = asyncio.get_running_loop().run_in_executor(self._bulk, self._append, piece)
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait([writing])
            raise

    def hexdigest(self) -> str:
        return self._hasher.hexdigest()

    def _append(self, piece: bytes) -> None:
        view = memoryview(piece)
        while view:
            count = os.pwrite(self._descriptor, view, self.offset)
            self._hasher.update(view[:count])
            self.offset += count
            view = view[count:]

    def _hash_piece(self, count: int) -> None:
        piece = os.pread(self._descriptor, count, self.offset)
        if not piece:
            raise OSError("the staged file shrank while it was read back")
        self._hasher.update(piece)
        self.offset += len(piece)


class Transfer:
    """One download's work, run once by its task."""

    def __init__(self, workshop: Workshop, download: Download) -> None:
        self._workshop = workshop
        self._download = download
        self._digest = download.digest
        self._final = workshop.store.path(download.digest)

    async def run(self) -> None:
        """Until the blob is adopted; raises RegistryError or OSError if it cannot be had."""
        while not await self._attempt():
            pass

    async def _attempt(self) -> bool:
        """Write or follow the staged file of the moment; false if it was replaced meanwhile."""
        staged = self._open()
        try:
            if staged.try_lock():
                return await self._settle_or_write(staged)
            return await self._follow(staged)
        finally:
            staged.close()

    def _open(self) -> StagedFile:
        if self._download.started:
            raise Unavailable("the process that fetched this blob failed", retry_after=1)
        staged = self._workshop.staging.open(self._digest)
        self._use_descriptor(os.dup(staged.descriptor))
        return staged

    def _use_descriptor(self, descriptor: int) -> None:
        if self._download.descriptor >= 0:
            os.close(self._download.descriptor)
        self._download.descriptor = descriptor

    async def _settle_or_write(self, staged: StagedFile) -> bool:
        """With the lock in hand: is there anything left to do?"""
        if staged.is_adopted_as(self._final):
            self._finish(staged)
            return True
        if not staged.is_current():
            return False
        stored = self._workshop.store.open(self._digest)
        if stored is not None:
            self._use_descriptor(os.dup(stored.descriptor))
            stored.close()
            staged.discard()
            self._download.advance(os.fstat(self._download.descriptor).st_size)
            self._download.verify()
            return True
        await self._write(staged)
        return True

    def _finish(self, staged: StagedFile) -> None:
        self._download.advance(staged.size)
        self._download.verify()

    # --- following another process -------------------------------------------------------

    async def _follow(self, staged: StagedFile) -> bool:
        while True:
            note, size = staged.read_note(), staged.size
            if note.flowing:
                if not self._download.started:
                    self._download.begin(note.size)
                self._download.advance(size)
            if staged.try_lock():
                self._raise_failure(staged.read_note())
                return await self._settle_or_write(staged)
            if staged.is_adopted_as(self._final):
                self._finish(staged)
                return True
            await self._workshop.sleep(POLL)

    @staticmethod
    def _raise_failure(note: Note) -> None:
        """The other writer's failure is the failure of those who followed it."""
        if not note.failure:
            return
        kind = getattr(errors, note.failure, None)
        if isinstance(kind, type) and issubclass(kind, UpstreamError):
            raise kind(note.upstream, note.message)
        raise Unavailable(note.message, retry_after=1)

    # --- writing -------------------------------------------------------------------------

    async def _write(self, staged: StagedFile) -> None:
        try:
            await self._fetch_and_verify(staged)
        except (RegistryError, OSError) as error:
            staged.write_note(_failure_note(error))
            if isinstance(error, UpstreamLied) or staged.size == 0:
                staged.discard()
            raise
        await self._workshop.store.adopt(staged.path, self._digest)
        staged.forget_note()
        await self._workshop.record(self._digest, self._download.written)

    async def _fetch_and_verify(self, staged: StagedFile) -> None:
        left, whole = staged.size, staged.read_note().size
        if whole is not None and left > whole:
            staged.truncate(0)
            left = 0
        if not self._download.started:  # else this one follows a dead writer: still flowing
            staged.write_note(Note(size=whole))
        writer = _Writer(self._workshop, staged, self._digest.hasher())
        await writer.read_back(left)
        if left:
            self._download.resumed += 1
        if not left or left != whole:
            await self._fetch(staged, writer)
        if writer.hexdigest() != self._digest.encoded:
            upstream = self._download.source.repository.upstream
            self._workshop.emit(VerificationFailed(upstream, "blob", self._digest, "upstream"))
            raise UpstreamLied(upstream, f"sent other content than {self._digest}", reason="digest")
        self._download.advance(writer.offset)
        self._download.verify()

    async def _fetch(self, staged: StagedFile, writer: _Writer) -> None:
        """Ask until everything is here; a try that brought bytes forgives those before it."""
        failures, whole = 0, False
        while True:
            before = writer.offset
            try:
                async with self._download.source.open(0 if whole else before) as body:
                    await self._begin(staged, body)
                    await self._pump(body, writer)
                return
            except UpstreamError as error:
                if writer.offset == 0 or isinstance(error, UpstreamLied) or error.status < 500:
                    raise
                if error.reason == "range":  # nothing comes from there on: all is here, or ask for all
                    if writer.hexdigest() == self._digest.encoded:
                        return
                    whole = True
                failures = 0 if writer.offset > before else failures + 1
                if failures >= len(PAUSES):
                    raise
            self._download.resumed += 1
            await self._workshop.sleep(PAUSES[failures])

    async def _begin(self, staged: StagedFile, body: Body) -> None:
        told = self._download.size
        if told is not None and body.size not in (None, told):
            # Clients were promised ``told`` bytes, the last of which is the one to hold back.
            raise UpstreamLied(self._name, f"changed a size from {told} to {body.size}", reason="length")
        self._download.answered = True
        size = await self._download.source.find_size() if body.size is None else body.size
        self._download.begin(size)
        staged.write_note(Note(flowing=True, size=self._download.size))
        self._download.advance(staged.size)

    async def _pump(self, body: Body, writer: _Writer) -> None:
        """From the upstream to the file, piece after piece.

        What arrives while a thread writes waits in the connection's bounded buffer: the first
        bytes are written at once, later pieces grow with the load, and nothing else is held.
        """
        skip = writer.offset - body.start
        limit, position = self._download.size, body.start
        while piece := await body.read():
            position += len(piece)
            if limit is not None and position > limit:
                raise UpstreamLied(self._name, f"sent more than {limit} bytes", reason="length")
            if skip:
                skip, piece = max(0, skip - len(piece)), piece[skip:]
            if piece:
                await writer.append(piece)
                self._download.advance(writer.offset)

    @property
    def _name(self) -> str:
        return self._download.source.repository.upstream


def _failure_note(error: RegistryError | OSError) -> Note:
    if isinstance(error, UpstreamError):
        message = error.message.removeprefix(f"{error.upstream}: ")
        return Note(failure=type(error).__name__, upstream=error.upstream, message=message[:500])
    return Note(failure=type(error).__name__, message=str(error)[:500])
