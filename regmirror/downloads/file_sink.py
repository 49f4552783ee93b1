"""Writes the bytes of one download into its staged file, or passes them through.

Space is reserved before bytes are written. When the disk fails or has no space, the download is
detached from its file: the fetch in progress continues as a pass-through to one reader, and each
other reader requests the remaining bytes itself (see ``passthrough``).
"""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import suppress
from typing import Final, Literal

from regmirror.blobs.base import InsufficientSpace
from regmirror.blobs.staging import StagedFile
from regmirror.downloads.download import Download
from regmirror.downloads.growing_file import GrowingFile
from regmirror.downloads.passthrough import DetachPoint, PassThrough
from regmirror.downloads.source import Body, Source, Spliced
from regmirror.downloads.space_reservation import SpaceReservation
from regmirror.downloads.transfer_context import TransferContext
from regmirror.errors import RegistryError, Unavailable
from regmirror.telemetry.events import NotStored

#: Why a blob is not stored, as metrics count it.
NotCachedReason = Literal["disk", "quota", "stalled"]
#: A process without free descriptors cannot connect to an upstream either: no fault of the disk.
NO_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE)


class FileSink:
    """The sink of one download's transfer; created in the task that runs the transfer."""

    def __init__(self, context: TransferContext, download: Download) -> None:
        self._context, self._download = context, download
        self._staged: StagedFile | None = None
        self._file: GrowingFile | None = None
        self._pass_through: PassThrough | None = None
        self._reservation = SpaceReservation(context.reserve, download.digest)
        self._task = asyncio.current_task()

    # --- the staged file -----------------------------------------------------------------

    def attach(self, staged: StagedFile) -> None:
        """Write into ``staged`` from now on."""
        self._staged = staged

    async def open_file(self, written: int) -> None:
        """Open the staged file, of which ``written`` bytes exist, and hash these."""
        if self._staged is not None:
            self._file = GrowingFile(
                self._staged.descriptor, self._download.digest.hasher(), self._context.bulk
            )
            await self._file.read_back(written)

    def write_state(self, *, is_flowing: bool) -> None:
        """Share the download's state with other processes."""
        if self._staged is not None:
            size = self._download.size
            self._staged.write_state(self._download.to_state(is_flowing=is_flowing, size=size))

    async def close(self) -> None:
        """Wait until no thread uses the file; it is written no more. May be called twice."""
        if self._file is not None:
            await self._file.close()

    # --- bytes ---------------------------------------------------------------------------

    @property
    def offset(self) -> int:
        target = self._pass_through or self._file
        return 0 if target is None else target.offset

    @property
    def size(self) -> int | None:
        return self._download.size

    async def begin(self, size: int | None, source: Source) -> None:
        self._download.note_response(source, size)
        if self._pass_through is None:
            await self._begin_file(source)
        if self._pass_through is not None:
            self._download.continue_provenance(source, self.offset)
            await self._pass_through.begin(size, source)
        else:
            self.write_state(is_flowing=True)
        self._download.begin(size)

    async def _begin_file(self, source: Source) -> None:
        """Open the file, let the state file agree with the provenance, and reserve space."""
        try:
            if self._file is None and self._staged is not None:
                self._download.open_file(self._staged, create=True)
                await self.open_file(0)
            has_changed = self._download.continue_provenance(source, self.offset)
            if has_changed and self._staged is not None:
                self._staged.clear_state()  # must not fail: the old state would be a false proof
        except OSError as error:
            await self.detach_after(error)
            return
        self._download.advance(self.offset)
        await self._reserve(0)

    async def append(self, piece: bytes | memoryview) -> None:
        await self._reserve(len(piece))
        file = self._file
        if self._pass_through is None and file is not None:
            before = file.offset
            try:
                await file.append(piece)
            except OSError as error:
                piece = piece[file.offset - before :]
                self._download.advance(file.offset)
                await self.detach_after(error)
            else:
                self._download.advance(file.offset)
        await self._pass_on(piece)

    async def splice_from(self, body: Body) -> int:
        await self._reserve(1)
        file, limit = self._file, self._reservation.limit(self._download.size)
        if self._pass_through is not None or file is None:
            return 0
        await file.prepare_splice()

        async def splice(source: int, count: int) -> Spliced | None:
            return await file.splice_from(source, count if limit is None else min(count, limit - file.offset))

        spliced = await body.splice(splice)
        if spliced is None:
            return 0
        self._download.advance(file.offset)
        if spliced.error is not None:
            await self.detach_after(spliced.error)
            await self._pass_on(spliced.unwritten)
        return spliced.count

    async def _pass_on(self, piece: bytes | memoryview) -> None:
        if self._pass_through is not None:
            await self._pass_through.append(piece)

    async def matches_digest(self) -> bool:
        if self._pass_through is not None:
            return await self._pass_through.matches_digest()
        if self._file is None:
            return False
        return (await self._file.drain()).hexdigest() == self._download.digest.encoded

    async def _reserve(self, count: int) -> None:
        """Reserve space for the whole blob, or if its size is unknown for ``count`` more bytes."""
        size, needed = self._download.size, self.offset + count
        if self._pass_through is not None or self._reservation.covers(size, needed):
            return
        self.write_state(is_flowing=self._download.started)  # other reservations count this one
        try:
            await self._reservation.extend(size, needed)
        except InsufficientSpace as error:
            await self.detach(error.reason, error.message)
        except OSError as error:
            await self.detach_after(error)

    # --- detaching -----------------------------------------------------------------------

    @property
    def is_detached(self) -> bool:
        return self._pass_through is not None

    @property
    def is_attached(self) -> bool:
        """Whether there is a staged file that may be written."""
        return self._staged is not None

    async def detach_after(self, error: OSError) -> None:
        """Detach because the disk has failed; raises ``error`` if that is no reason to."""
        if error.errno in NO_DESCRIPTORS or self._download.verified or self._pass_through is not None:
            raise error
        await self.detach("disk", error.strerror or str(error))

    async def detach(self, reason: NotCachedReason, why: str) -> None:
        """Delete the staged file and pass through what follows.

        Raises Unavailable if there is no reader, or if readers have bytes whose hash is not known.
        """
        self.note_not_cached(reason, why)
        detach_point = await self._find_detach_point()
        await self.close()  # first: a thread may use the file
        if self._staged is not None:
            self._staged.abandon()
            self._staged = None
        if detach_point is None or not self._download.readers:
            raise Unavailable(f"the blob {self._download.not_cached_reason}", retry_after=10)
        self._pass_through = PassThrough(
            detach_point,
            detach_point.start,
            self._download.size,
            threads=self._context.bulk,
            emit=self._context.emit,
        )
        self._pass_through.feed_by(self._task)
        self._download.detach(detach_point, self._pass_through)

    async def _find_detach_point(self) -> DetachPoint | None:
        """Return where readers can continue; None if they have bytes whose hash is not known."""
        digest, source = self._download.digest, self._download.sources.current
        file, start = self._file, self._download.visible
        if file is not None and start <= file.offset <= start + 1:
            with suppress(OSError):  # the written bytes cannot be read back
                hasher = await file.drain()
                withheld = os.pread(self._download.descriptor, file.offset - start, start)
                return DetachPoint(digest, source, start, withheld, hasher.copy())
        return None if start else DetachPoint(digest, source, 0, b"", digest.hasher())

    def note_not_cached(self, reason: NotCachedReason, why: str) -> None:
        """Record why the blob is not stored; one event for each pull that it concerns."""
        self._download.not_cached(f"cannot be stored: {why}")
        for _ in range(max(1, self._download.readers)):
            self._context.emit(NotStored(reason, why))

    def finish(self) -> None:
        """All bytes were fetched; raises UpstreamContentInvalid if a pass-through has the wrong digest."""
        if self._pass_through is not None:
            self._pass_through.finish()
            if self._pass_through.offset == 0:  # an empty body: readers wait for its verification
                self._download.verify()

    def fail(self, error: BaseException) -> None:
        """The transfer has failed: end the pass-through, if there is one."""
        if self._pass_through is not None:
            interrupted = Unavailable(f"the transfer was interrupted: {error!r}", retry_after=1)
            self._pass_through.fail(error if isinstance(error, RegistryError) else interrupted)
