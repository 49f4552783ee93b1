"""How a blob gets from its upstream into its file, by this process or by another one.

The process that holds the lock writes: it resumes what an earlier writer left, requests the rest
by ``Range``, hashes and writes in bulk threads, verifies, and has the store adopt the file. Until
an upstream has answered there is no file, only the note whose lock that process holds. A process
without the lock watches the file grow; when the lock becomes free it finds the blob adopted, or
the writer's reason for giving up, or takes over. A writer that stands still is not waited for.

When the disk fails or has no room, the file goes and the rest passes on (see ``passthrough.py``): what
is being fetched at that moment to one reader, the same bytes to each other one by its own request.
"""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import suppress
from typing import Final

from regmirror.blobs.base import InsufficientSpace
from regmirror.blobs.local import LocalBlob
from regmirror.blobs.staging import DownloadState, StagedFile
from regmirror.downloads.download import Download
from regmirror.downloads.fetcher import Body, Moved, Source, fetch, is_wrong_content
from regmirror.downloads.passthrough import DetachPoint, PassThrough
from regmirror.downloads.provenance import Provenance
from regmirror.downloads.state_file import judge, note_of, open_bytes, patience_for, see
from regmirror.downloads.transfer_context import Allowance, Reason, TransferContext
from regmirror.downloads.writer import Writer
from regmirror.errors import RegistryError, Unavailable, UpstreamContentInvalid, UpstreamError
from regmirror.telemetry.events import NotStored, VerificationFailed

POLL: Final = 0.01  # seconds between looks at a file that another process writes

#: A process that has no descriptor left cannot ask an upstream either; that is not the disk's fault.
_NO_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE)


class Transfer:
    """One download's work, run once by its task; the sink of what is fetched for it."""

    def __init__(self, context: TransferContext, download: Download) -> None:
        self._context = context
        self._download = download
        self._digest = download.digest
        self._final = context.store.path(download.digest)
        self._staged: StagedFile | None = None  # while it is written
        self._writer: Writer | None = None
        self._pass_through: PassThrough | None = None  # once nothing is written any more
        self._allowance = Allowance(context.reserve, download.digest)
        self._task = asyncio.current_task()

    async def run(self) -> None:
        """Until the blob is adopted, or has passed on; raises RegistryError or OSError otherwise."""
        try:
            await self._run()
        except BaseException as error:
            if self._pass_through is not None:
                told = Unavailable(f"the transfer was interrupted: {error!r}", retry_after=1)
                self._pass_through.fail(error if isinstance(error, RegistryError) else told)
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
        staged = self._context.staging.open(self._digest)
        try:
            if staged.try_lock():
                return await self._settle_or_write(staged)
            return await self._follow(staged)
        except OSError as error:
            if error.errno not in _NO_DESCRIPTORS:
                staged.abandon()
            raise
        finally:
            if self._writer is not None:
                await self._writer.close()
            staged.close()

    async def _settle_or_write(self, staged: StagedFile) -> bool:
        """With the lock in hand: is there anything left to do?"""
        if staged.is_committed_as(self._final):
            self._finish(staged)
            return True
        if not staged.is_current():
            if self._download.started:
                await self._go_on_alone(staged, "disk", "the process that fetched it could not")
            return self._download.started
        if (stored := self._find_stored()) is not None:
            self._download.use_descriptor(os.dup(stored.descriptor))
            stored.close()
            self._download.origin = Provenance()
            self._download.advance(os.fstat(self._download.descriptor).st_size)
            self._download.verify()
            staged.discard()
            return True
        await self._write(staged)
        return True

    def _find_stored(self) -> LocalBlob | None:
        try:
            return self._context.store.open(self._digest)
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:
                raise
            return None  # it cannot be read, and is replaced

    def _finish(self, staged: StagedFile) -> None:
        self._download.advance(staged.size)
        self._download.verify()

    # --- following another process -------------------------------------------------------

    async def _follow(self, staged: StagedFile) -> bool:
        loop = asyncio.get_running_loop()
        seen, since = staged.size, loop.time()
        while True:
            size, note = staged.size, staged.read_state()  # in this order: the note is no older
            if size != seen:
                seen, since = size, loop.time()
            see(self._download, staged, size, note, self._final)
            if staged.try_lock():
                judge(self._download, staged.read_state())
                return await self._settle_or_write(staged)
            if staged.is_committed_as(self._final):
                self._finish(staged)
                return True
            if loop.time() - since > patience_for(self._download, note):
                if not self._download.verified:
                    await self._go_on_alone(staged, "stalled", "another process brings nothing of it")
                return True
            await self._context.sleep(POLL)

    async def _go_on_alone(self, staged: StagedFile, reason: Reason, why: str) -> None:
        """Nothing more comes by the file: what is in it may be used, if there is one."""
        self._staged = staged
        if staged.descriptor >= 0:
            size, note = staged.size, staged.read_state()  # in this order: the note is no older
            self._download.origin = Provenance(note.origin, note.origin_until)
            await self._open_writer(staged, size)
            self._download.advance(size)
            if await self.matches_digest():
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
                failed = self._download.suspect or str(self._download.source.repository)
                staged.write_state(DownloadState.of_failure(error, failed, before=staged.read_state()))
                if is_wrong_content(error) or staged.size == 0:
                    staged.discard()
            raise
        except asyncio.CancelledError:
            if staged.descriptor < 0:  # there is nothing to resume
                staged.discard()
            raise
        if self._pass_through is None:
            await self._adopt(staged)

    async def _fetch_and_verify(self, staged: StagedFile) -> None:
        left, whole = await self._resume(staged)
        if not left or left != whole:
            await self._fetch()
        elif not self._download.started:
            self._download.origin = Provenance()  # no upstream has said today that it has this
        if self._pass_through is not None:
            return
        if not await self.matches_digest():
            self._context.emit(VerificationFailed(self._download.upstream, "blob", self._digest, "upstream"))
            self._download.suspect_origin()
            raise UpstreamContentInvalid(
                self._download.upstream, f"sent other content than {self._digest}", reason="digest"
            )
        self._download.advance(self.offset)
        self._download.verify()
        self._tell_followers(is_flowing=True)

    async def _resume(self, staged: StagedFile) -> tuple[int, int | None]:
        """Hash what an earlier writer has left: how much that is, and how much it should become."""
        note = staged.read_state()
        open_bytes(self._download, staged)
        left = staged.size
        if note.size is not None and left > note.size:
            staged.truncate(0)
            left = 0
        if left:
            self._download.origin = Provenance(note.origin, note.origin_until)
            self._download.resumed += 1
        if not self._download.started:  # else this one follows a dead writer: still flowing
            staged.clear_state()
            staged.write_state(note_of(self._download, is_flowing=False, size=note.size if left else None))
        if left:
            await self._open_writer(staged, left)
        return left, note.size

    async def _open_writer(self, staged: StagedFile, left: int) -> None:
        self._writer = Writer(staged.descriptor, self._digest.hasher(), self._context.bulk)
        await self._writer.read_back(left)

    async def _adopt(self, staged: StagedFile) -> None:
        """All bytes are here and right; if they cannot be kept, readers have them all the same."""
        try:
            await self._context.store.commit(staged.path, self._digest)
        except OSError as error:
            self._tell_not_kept("disk", error.strerror or str(error))
            staged.discard()
            return
        possessors = self._download.find_possessors()
        await self._context.record(self._digest, self._download.written, possessors)
        staged.delete_state()  # only now, so that the blob is counted at every moment

    async def _fetch(self) -> None:
        """Into the file, or once that has failed to one reader."""
        await fetch(self._download.source, self, self._context.sleep)
        if self._pass_through is not None:
            self._pass_through.finish()
            if self._pass_through.offset == 0:  # nothing was held back that readers could wait for
                self._download.verify()

    # --- the sink ------------------------------------------------------------------------

    @property
    def offset(self) -> int:
        sink = self._pass_through or self._writer
        return 0 if sink is None else sink.offset

    @property
    def size(self) -> int | None:
        return self._download.size

    async def begin(self, size: int | None, source: Source) -> None:
        download = self._download
        download.source = source
        if size is not None and size != download.size:
            download.size = size
            download.size_told_by = str(source.repository)
        if self._pass_through is None:
            await self._begin_writing(source)
        if self._pass_through is not None:
            download.origin = download.origin.continued_by(source.repository, self.offset)
            await self._pass_through.begin(size, source)
        else:
            self._tell_followers(is_flowing=True)
        download.begin(size)

    async def _begin_writing(self, source: Source) -> None:
        """Have the file open, room for it, and the note say whose bytes come."""
        staged, download = self._staged, self._download
        try:
            if self._writer is None and staged is not None:
                open_bytes(self._download, staged, create=True)
                await self._open_writer(staged, 0)
            origin = download.origin.continued_by(source.repository, self.offset)
            if staged is not None and origin.until != download.origin.until:
                staged.clear_state()  # in any case: what it says of the bytes is no longer so
            download.origin = origin
        except OSError as error:
            await self._part_from(error)
            return
        download.advance(self.offset)
        await self._reserve(0)

    async def append(self, piece: bytes | memoryview) -> None:
        await self._reserve(len(piece))
        writer = self._writer
        if self._pass_through is None and writer is not None:
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
        if self._pass_through is not None:
            await self._pass_through.append(piece)

    async def splice_from(self, body: Body) -> int:
        await self._reserve(1)
        writer, limit = self._writer, self._allowance.limit(self._download.size)
        if self._pass_through is not None or writer is None:
            return 0
        await writer.make_ready()

        async def move(source: int, count: int) -> Moved | None:
            room = count if limit is None else min(count, limit - writer.offset)
            return await writer.move(source, room)

        moved = await body.splice(move)
        if moved is None:
            return 0
        self._download.advance(writer.offset)
        if moved.error is not None:
            await self._part_from(moved.error)
            await self._pass_on(moved.unwritten)
        return moved.count

    async def matches_digest(self) -> bool:
        if self._pass_through is not None:
            return await self._pass_through.matches_digest()
        if self._writer is None:
            return False
        return (await self._writer.drain()).hexdigest() == self._digest.encoded

    def note_resumed(self) -> None:
        self._download.resumed += 1

    def take_other(self) -> Source | None:
        """Of what passes through memory only as long as nobody was told of it."""
        is_passing = self._pass_through is not None and self._download.started
        return None if is_passing else self._download.take_other()

    def put_back(self, source: Source) -> None:
        self._download.put_back(source)

    def refuse(self, source: Source, error: UpstreamError) -> None:
        self._download.refuse(str(source.repository), error)

    def suspect(self, source: Source) -> None:
        """Who told the size first is to blame for one that does not fit."""
        self._download.suspect = self._download.size_told_by or str(source.repository)

    def _tell_followers(self, *, is_flowing: bool) -> None:
        if self._staged is not None:
            self._staged.write_state(note_of(self._download, is_flowing=is_flowing, size=self._download.size))

    # --- what cannot be kept -------------------------------------------------------------

    async def _reserve(self, count: int) -> None:
        """Have room for the whole blob, or where its size is not known for ``count`` bytes more."""
        size, needed = self._download.size, self.offset + count
        if self._pass_through is not None or self._allowance.is_enough(size, needed):
            return
        self._tell_followers(is_flowing=self._download.started)  # and others, who must leave room for it
        try:
            await self._allowance.extend(size, needed)
        except InsufficientSpace as error:
            await self._part(error.reason, error.message)
        except OSError as error:
            await self._part_from(error)

    async def _part_from(self, error: OSError) -> None:
        """The disk has failed; raises the error itself if that is not what it means."""
        if error.errno in _NO_DESCRIPTORS or self._download.verified or self._pass_through is not None:
            raise error
        await self._part("disk", error.strerror or str(error))

    async def _part(self, reason: Reason, why: str) -> None:
        """Keep nothing any more: readers get the rest as it comes. Raises Unavailable without any,
        and if what they have got cannot be gone on from.
        """
        self._tell_not_kept(reason, why)
        detach_point = await self._plan_parting()
        if self._staged is not None:
            self._staged.abandon()
            self._staged = None
        if detach_point is None or not self._download.readers:
            raise Unavailable(f"the blob {self._download.not_cached_reason}", retry_after=10)
        size, threads, emit = self._download.size, self._context.bulk, self._context.emit
        self._pass_through = PassThrough(detach_point, detach_point.start, size, threads=threads, emit=emit)
        self._pass_through.producer = self._task
        self._download.part(detach_point, self._pass_through)

    async def _plan_parting(self) -> DetachPoint | None:
        """Where readers can go on; None if some have bytes of which the hash is not known."""
        writer, source, start = self._writer, self._download.source, self._download.visible
        if writer is not None and start <= writer.offset <= start + 1:
            with suppress(OSError):  # what was written cannot even be read
                hasher = await writer.drain()
                held = os.pread(self._download.descriptor, writer.offset - start, start)
                return DetachPoint(self._digest, source, start, held, hasher.copy())
        return None if start else DetachPoint(self._digest, source, 0, b"", self._digest.hasher())

    def _tell_not_kept(self, reason: Reason, why: str) -> None:
        """Once for each pull that is being answered without being kept."""
        self._download.not_cached_reason = f"cannot be stored: {why}"
        for _ in range(max(1, self._download.readers)):
            self._context.emit(NotStored(reason, why))
