"""How a blob gets from its upstream into its file, by this process or by another one.

The process that holds the lock writes: it resumes what an earlier writer left, asks the
upstream for the rest by ``Range``, hashes and writes in bulk threads, verifies, and has the
store adopt the file. A process without the lock watches the file grow; when the lock becomes
free it finds the blob adopted, or the writer's reason for giving up, or takes over.

When the disk fails or has no room, the file goes and the rest passes on (see ``passing.py``): what
is being fetched at that moment to one reader, the same bytes to each other one by its own request.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal

from regmirror.blobs.base import NoRoom
from regmirror.blobs.local import LocalBlob, LocalBlobStore
from regmirror.blobs.staging import Note, StagedFile, Staging
from regmirror.errors import RegistryError, Unavailable, UpstreamLied
from regmirror.events import Emit, NotStored, VerificationFailed
from regmirror.fetching import Body, Sleep, Source, fetch
from regmirror.inflight import Download
from regmirror.names import Digest
from regmirror.passing import Parting, Passage
from regmirror.writer import Writer

POLL: Final = 0.01  # seconds between looks at a file that another process writes
FOREIGN_STALL: Final = 1.0  # seconds without a byte from an upstream that is not the follower's own

#: A process that has no descriptor left cannot ask an upstream either; that is not the disk's fault.
_NO_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE)

#: Why a blob is not kept, as metrics count it.
Reason = Literal["disk", "quota", "stalled"]
Reserve = Callable[[Digest, int | None], Awaitable[None]]


async def _reserve_nothing(digest: Digest, size: int | None) -> None:
    """There is always room."""


@dataclass(frozen=True)
class Workshop:
    """What every transfer works with.

    ``record`` is told of each adopted blob; ``bulk`` are the threads that write and hash.
    ``reserve`` is asked for room before a blob is written, with its size if that is known; it
    raises NoRoom.
    """

    staging: Staging
    store: LocalBlobStore
    record: Callable[[Digest, int], Awaitable[None]]
    emit: Emit
    bulk: ThreadPoolExecutor
    sleep: Sleep = asyncio.sleep
    reserve: Reserve = _reserve_nothing


class Transfer:
    """One download's work, run once by its task; the sink of what is fetched for it."""

    def __init__(self, workshop: Workshop, download: Download) -> None:
        self._workshop = workshop
        self._download = download
        self._digest = download.digest
        self._final = workshop.store.path(download.digest)
        self._staged: StagedFile | None = None  # while it is written
        self._writer: Writer | None = None
        self._passage: Passage | None = None  # once nothing is written any more
        self._has_room = False
        self._task = asyncio.current_task()

    async def run(self) -> None:
        """Until the blob is adopted, or has passed on; raises RegistryError or OSError otherwise."""
        try:
            await self._run()
        except BaseException as error:
            if self._passage is not None:
                told = Unavailable(f"the transfer was interrupted: {error!r}", retry_after=1)
                self._passage.fail(error if isinstance(error, RegistryError) else told)
            raise

    async def _run(self) -> None:
        try:
            while not await self._attempt():
                pass
        except OSError as error:
            await self._part_from(error)
            await self._fetch()

    async def _attempt(self) -> bool:
        """Write or follow the staged file of the moment; false if it was replaced meanwhile."""
        staged = self._workshop.staging.open(self._digest)
        try:
            self._use_descriptor(os.dup(staged.descriptor))
            if staged.try_lock():
                return await self._settle_or_write(staged)
            return await self._follow(staged)
        except OSError as error:
            if error.errno not in _NO_DESCRIPTORS:
                self._abandon(staged)
            raise
        finally:
            if self._writer is not None:
                await self._writer.close()
            staged.close()

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
            if self._download.started:
                await self._go_on_alone(staged, "disk", "the process that fetched it could not")
            return self._download.started
        if (stored := self._find_stored()) is not None:
            self._use_descriptor(os.dup(stored.descriptor))
            stored.close()
            self._download.advance(os.fstat(self._download.descriptor).st_size)
            self._download.verify()
            staged.discard()
            return True
        await self._write(staged)
        return True

    def _find_stored(self) -> LocalBlob | None:
        try:
            return self._workshop.store.open(self._digest)
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:
                raise
            return None  # it cannot be read, and is replaced

    def _finish(self, staged: StagedFile) -> None:
        staged.share()
        self._download.advance(staged.size)
        self._download.verify()

    # --- following another process -------------------------------------------------------

    async def _follow(self, staged: StagedFile) -> bool:
        loop = asyncio.get_running_loop()
        seen, since = staged.size, loop.time()
        while True:
            size, note = staged.size, staged.read_note()  # in this order: the note is no older
            if size != seen:
                seen, since = size, loop.time()
            # By its size too: a writer that was killed may have left the note of an earlier file.
            if note.verified and note.size == size and not self._download.verified:
                self._download.advance(size)
                self._download.verify()
            is_foreign = note.upstream not in ("", self._name) and not self._download.verified
            if is_foreign and loop.time() - since > FOREIGN_STALL:
                await self._go_on_alone(staged, "stalled", f"{note.upstream} brings nothing of it")
                return True
            if note.flowing and not self._download.verified:
                if not self._download.started:
                    self._download.begin(note.size)
                self._download.advance(size)
            if staged.try_lock():
                staged.read_note().raise_failure()
                return await self._settle_or_write(staged)
            if staged.is_adopted_as(self._final):
                self._finish(staged)
                return True
            await self._workshop.sleep(POLL)

    async def _go_on_alone(self, staged: StagedFile, reason: Reason, why: str) -> None:
        """Nothing more comes by the file, which is still open here: what is in it may be used."""
        self._staged = staged
        self._writer = Writer(staged.descriptor, self._digest.hasher(), self._workshop.bulk)
        await self._writer.read_back(staged.size)
        self._download.advance(self._writer.offset)
        if await self.is_right():
            self._tell_not_kept(reason, why)
            self._download.verify()
            return
        await self._part(reason, why)
        await self._fetch()

    # --- writing -------------------------------------------------------------------------

    async def _write(self, staged: StagedFile) -> None:
        self._staged = staged
        try:
            await self._fetch_and_verify(staged)
        except RegistryError as error:
            if self._staged is not None:
                staged.write_note(Note.of_failure(error))
                if isinstance(error, UpstreamLied) or staged.size == 0:
                    staged.discard()
            raise
        if self._passage is None:
            await self._adopt(staged)

    async def _fetch_and_verify(self, staged: StagedFile) -> None:
        left, whole = staged.size, staged.read_note().size
        if whole is not None and left > whole:
            staged.truncate(0)
            left = 0
        if not self._download.started:  # else this one follows a dead writer: still flowing
            staged.clear_note()
            staged.write_note(Note(size=whole, upstream=self._name))
        self._writer = writer = Writer(staged.descriptor, self._digest.hasher(), self._workshop.bulk)
        await writer.read_back(left)
        if left:
            self._download.resumed += 1
        if not left or left != whole:
            await self._fetch()
        if self._passage is not None:
            return
        if not await self.is_right():
            self._workshop.emit(VerificationFailed(self._name, "blob", self._digest, "upstream"))
            raise UpstreamLied(self._name, f"sent other content than {self._digest}", reason="digest")
        self._download.advance(writer.offset)
        self._download.verify()
        staged.write_note(Note(True, True, writer.offset, upstream=self._name))

    async def _adopt(self, staged: StagedFile) -> None:
        """All bytes are here and right; if they cannot be kept, readers have them all the same."""
        try:
            await self._workshop.store.adopt(staged.path, self._digest)
        except OSError as error:
            self._tell_not_kept("disk", error.strerror or str(error))
            staged.discard()
            return
        staged.share()
        await self._workshop.record(self._digest, self._download.written)
        staged.forget_note()  # only now, so that the blob is counted at every moment

    async def _fetch(self) -> None:
        """Into the file, or once that has failed to one reader."""
        await fetch(self._download.source, self, self._workshop.sleep)
        if self._passage is not None:
            self._passage.finish()
            if self._passage.offset == 0:  # nothing was held back that readers could wait for
                self._download.verify()

    # --- the sink ------------------------------------------------------------------------

    @property
    def offset(self) -> int:
        sink = self._passage or self._writer
        return 0 if sink is None else sink.offset

    @property
    def size(self) -> int | None:
        return self._download.size

    async def begin(self, size: int | None) -> None:
        download = self._download
        download.answered = True
        if size is not None:
            download.size = size
        if self._passage is None:
            download.advance(self.offset)
            await self._reserve()
        if self._passage is not None:
            await self._passage.begin(size)
        else:
            self._tell_followers(is_flowing=True)
        download.begin(size)

    async def append(self, piece: bytes | memoryview) -> None:
        writer = self._writer
        if self._passage is None and writer is not None:
            before = writer.offset
            try:
                await writer.append(piece)
            except OSError as error:
                piece = piece[writer.offset - before :]
                self._download.advance(writer.offset)
                await self._part_from(error)
            else:
                self._download.advance(writer.offset)
        await self._pass_on(piece)

    async def _pass_on(self, piece: bytes | memoryview) -> None:
        if self._passage is not None:
            await self._passage.append(piece)

    async def draw(self, body: Body) -> bool:
        writer = self._writer
        if self._passage is not None or writer is None:
            return False
        await writer.make_ready()
        moved = await body.splice(writer.move)
        if moved is None:
            return False
        self._download.advance(writer.offset)
        if moved.error is not None:
            await self._part_from(moved.error)
            await self._pass_on(moved.unwritten)
        return moved.count > 0

    async def is_right(self) -> bool:
        if self._passage is not None:
            return await self._passage.is_right()
        if self._writer is None:
            return False
        return (await self._writer.settle()).hexdigest() == self._digest.encoded

    def note_resumed(self) -> None:
        self._download.resumed += 1

    def take_other(self) -> Source | None:
        return None if self._passage is not None else self._download.take_other()

    def _tell_followers(self, *, is_flowing: bool) -> None:
        if self._staged is not None:
            self._staged.write_note(Note(is_flowing, size=self._download.size, upstream=self._name))

    # --- what cannot be kept -------------------------------------------------------------

    async def _reserve(self) -> None:
        if self._has_room:
            return
        self._tell_followers(is_flowing=False)  # and others, who must leave room for it
        try:
            await self._workshop.reserve(self._digest, self._download.size)
            self._has_room = True
        except NoRoom as error:
            await self._part(error.reason, error.message)
        except OSError as error:
            await self._part_from(error)

    async def _part_from(self, error: OSError) -> None:
        """The disk has failed; raises the error itself if that is not what it means."""
        if error.errno in _NO_DESCRIPTORS or self._download.verified or self._passage is not None:
            raise error
        await self._part("disk", error.strerror or str(error))

    async def _part(self, reason: Reason, why: str) -> None:
        """Keep nothing any more: readers get the rest as it comes. Raises Unavailable without any,
        and if what they have got cannot be gone on from.
        """
        self._tell_not_kept(reason, why)
        parting = await self._plan_parting()
        if self._staged is not None:
            self._abandon(self._staged)
            self._staged = None
        if parting is None or not self._download.readers:
            raise Unavailable(f"the blob {self._download.unkept}", retry_after=10)
        size, shop = self._download.size, self._workshop
        self._passage = Passage(parting, parting.start, size, threads=shop.bulk, emit=shop.emit)
        self._passage.producer = self._task
        self._download.part(parting, self._passage)

    async def _plan_parting(self) -> Parting | None:
        """Where readers can go on; None if some have bytes of which the hash is not known."""
        writer, source, start = self._writer, self._download.source, self._download.visible
        if writer is not None and start <= writer.offset <= start + 1:
            with suppress(OSError):  # what was written cannot even be read
                hasher = await writer.settle()
                held = os.pread(self._download.descriptor, writer.offset - start, start)
                return Parting(self._digest, source, start, held, hasher.copy())
        return None if start else Parting(self._digest, source, 0, b"", self._digest.hasher())

    def _tell_not_kept(self, reason: Reason, why: str) -> None:
        """Once for each pull that is being answered without being kept."""
        self._download.unkept = f"cannot be stored: {why}"
        for _ in range(max(1, self._download.readers)):
            self._workshop.emit(NotStored(reason, why))

    @staticmethod
    def _abandon(staged: StagedFile) -> None:
        """Remove what was written, unless it is another writer's; a disk that fails may refuse that."""
        with suppress(OSError):
            if staged.is_writer and staged.is_current():
                staged.discard()
        staged.close()

    @property
    def _name(self) -> str:
        return self._download.source.repository.upstream
