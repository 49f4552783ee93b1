"""Brings one blob from its source into the store, as the writer or by following the writer.

The process that locks the state file is the writer: it hashes the bytes that an earlier writer
left, requests the remaining ones by ``Range``, verifies the digest and commits the file. Until an
upstream has responded there is only the state file. A process without the lock follows the file as
it grows. When the lock is free, the blob is committed, or the state file has the writer's failure,
or this process becomes the writer. It does not wait for a writer that makes no progress.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final

from regmirror.blobs.base import Blob
from regmirror.blobs.staging import DownloadState, StagedFile
from regmirror.downloads.download import Download
from regmirror.downloads.fetcher import fetch, is_wrong_content
from regmirror.downloads.file_sink import NO_DESCRIPTORS, FileSink, NotCachedReason
from regmirror.downloads.transfer_context import TransferContext
from regmirror.errors import RegistryError, Unavailable, UpstreamContentInvalid, UpstreamError
from regmirror.telemetry.events import VerificationFailed

POLL: Final = 0.01  # seconds between two checks of a file that another process writes
FOREIGN_STALL: Final = 1.0  # seconds without a byte after which bytes of another upstream are not waited for
TAKEOVER_MAX: Final = 1.0  # seconds until a dead writer is replaced by another process


class Transfer:
    """The work of one download, run once by its task."""

    def __init__(self, context: TransferContext, download: Download) -> None:
        self._context, self._download = context, download
        self._digest = download.digest
        self._sink = FileSink(context, download)

    async def run(self) -> None:
        """Return when the blob is committed, or has passed through; raises RegistryError or OSError."""
        try:
            try:
                while not await self._attempt():
                    pass
            except OSError as error:
                await self._sink.detach_after(error)
                await self._fetch()
        except BaseException as error:
            self._sink.fail(error)
            raise

    async def _attempt(self) -> bool:
        """Write or follow the present staged file; False if it was replaced meanwhile."""
        staged = self._context.staging.open(self._digest)
        try:
            if staged.try_lock():
                return await self._lead(staged)
            return await self._follow(staged)
        except OSError as error:
            if error.errno not in NO_DESCRIPTORS:
                await self._sink.close()  # first: a thread may use the file
                staged.abandon()
            raise
        finally:
            await self._sink.close()
            staged.close()

    async def _lead(self, staged: StagedFile) -> bool:
        """As the holder of the lock, write unless the blob is complete; False to try again."""
        if self._is_committed(staged):
            self._finish(staged)
            return True
        if not staged.is_current():
            if self._download.started:
                await self._continue_alone(
                    staged, "disk", "the process that fetched the blob could not store it"
                )
            return self._download.started
        if (stored := self._open_stored()) is not None:
            self._use_stored(stored)
            staged.discard()
            return True
        await self._write(staged)
        return True

    def _open_stored(self) -> Blob | None:
        try:
            return self._context.store.open(self._digest)
        except OSError as error:
            if error.errno in NO_DESCRIPTORS:
                raise
            return None  # it cannot be read: the new file replaces it

    def _use_stored(self, stored: Blob) -> None:
        if stored.descriptor is not None and stored.size is not None:
            self._download.use_descriptor(os.dup(stored.descriptor))
            self._download.forget_provenance()
            self._download.advance(stored.size)
            self._download.verify()
        stored.close()

    def _is_committed(self, staged: StagedFile) -> bool:
        return staged.descriptor >= 0 and self._context.store.is_stored_as(self._digest, staged.descriptor)

    def _finish(self, staged: StagedFile) -> None:
        self._download.advance(staged.size)
        self._download.verify()

    # --- following another process -------------------------------------------------------

    async def _follow(self, staged: StagedFile) -> bool:
        loop = asyncio.get_running_loop()
        size, since = staged.size, loop.time()
        while True:
            before, (size, state) = size, self._observe(staged)
            if size != before:
                since = loop.time()
            if staged.try_lock():
                self._raise_failure(staged.read_state())
                return await self._lead(staged)
            if self._is_committed(staged):
                self._finish(staged)
                return True
            if loop.time() - since > self._silence_max(state):
                if not self._download.verified:
                    await self._continue_alone(
                        staged, "stalled", "the download in another process makes no progress"
                    )
                return True
            await self._context.sleep(POLL)

    def _observe(self, staged: StagedFile) -> tuple[int, DownloadState]:
        """Let readers have the bytes that the writer has written."""
        size, state = staged.size, staged.read_state()  # in this order: the state is at least as new
        download = self._download
        if not download.verified and state.flowing and download.open_file(staged):
            download.follow_state(state, size)
            is_complete = size == state.size
            if is_complete and (staged.is_verified(state) or (state.verified and self._is_committed(staged))):
                download.verify()
        return size, state

    def _raise_failure(self, state: DownloadState) -> None:
        """Raise the writer's failure if it concerns this download.

        That is one that no upstream caused, one of its last source, or wrong bytes of which readers
        have had some.
        """
        error = state.find_failure()
        if error is None:
            return
        if not isinstance(error, UpstreamError):
            raise error
        if is_wrong_content(error) and self._download.started:
            self._download.sources.blame(state.repository)
            raise error
        self._download.sources.reject_of(state.repository, error)

    def _silence_max(self, state: DownloadState) -> float:
        """Seconds without a byte for which to wait: fewer when another upstream, or before the first
        byte another repository, is requested.
        """
        source = self._download.sources.current
        if state.flowing:
            is_other = state.upstream not in ("", source.repository.upstream)
        else:
            is_other = state.repository not in ("", str(source.repository))
        is_foreign = is_other and not self._download.verified
        return min(FOREIGN_STALL, source.read_timeout) if is_foreign else source.read_timeout

    async def _continue_alone(self, staged: StagedFile, reason: NotCachedReason, why: str) -> None:
        """The file will not grow: serve its bytes, and pass the remaining ones through."""
        self._sink.attach(staged)
        if staged.descriptor >= 0:
            size, state = staged.size, staged.read_state()  # in this order: the state is at least as new
            self._download.restore_provenance(state)
            await self._sink.open_file(size)
            self._download.advance(size)
            if await self._sink.matches_digest():
                self._sink.note_not_cached(reason, why)
                self._download.verify()
                return
        await self._sink.detach(reason, why)
        await self._fetch()

    async def watch(self, staged: StagedFile) -> None:
        """Follow the writer of ``staged`` until the blob is verified or nobody reads it.

        Never becomes the writer. Raises the writer's failure, or Unavailable when the writer ends or
        makes no progress.
        """
        loop = asyncio.get_running_loop()
        size, since = staged.size, loop.time()
        while self._download.readers and not self._download.verified:
            before, (size, state) = size, self._observe(staged)
            if size != before:
                since = loop.time()
            if (error := state.find_failure()) is not None:
                raise error
            if self._is_committed(staged):
                self._finish(staged)
                return
            silence_max = self._download.sources.current.read_timeout
            if loop.time() - since > (silence_max if staged.has_writer() else TAKEOVER_MAX):
                raise Unavailable("the download in another process makes no progress", retry_after=1)
            await self._context.sleep(POLL)

    # --- writing -------------------------------------------------------------------------

    async def _write(self, staged: StagedFile) -> None:
        self._sink.attach(staged)
        try:
            await self._fetch_and_verify(staged)
        except RegistryError as error:
            if self._sink.is_attached:
                suspected = self._download.sources.suspected
                staged.write_state(DownloadState.of_failure(error, suspected, before=staged.read_state()))
                if is_wrong_content(error) or staged.size == 0:
                    staged.discard()
            raise
        except asyncio.CancelledError:
            if staged.descriptor < 0:  # there is nothing to resume
                staged.discard()
            raise
        if not self._sink.is_detached:
            await self._commit(staged)

    async def _fetch_and_verify(self, staged: StagedFile) -> None:
        left, size = await self._resume(staged)
        if not left or left != size:
            await self._fetch()
        elif not self._download.started:
            self._download.forget_provenance()  # no request was made that could prove anything
        if self._sink.is_detached:
            return
        if not await self._sink.matches_digest():
            upstream = self._download.repository.upstream
            self._context.emit(VerificationFailed(upstream, "blob", self._digest, "upstream"))
            self._download.suspect_provenance()
            raise UpstreamContentInvalid(upstream, f"sent other content than {self._digest}", reason="digest")
        self._download.advance(self._sink.offset)
        self._download.verify()
        self._sink.write_state(is_flowing=True)

    async def _resume(self, staged: StagedFile) -> tuple[int, int | None]:
        """Hash the bytes that an earlier writer left; return their number, and the blob's size."""
        state = staged.read_state()
        self._download.open_file(staged)
        left = staged.size
        if state.size is not None and left > state.size:
            staged.truncate(0)
            left = 0
        if left:
            self._download.restore_provenance(state)
            self._download.sources.note_resumed()
        if not self._download.started:  # otherwise followers of the dead writer see content already
            size = state.size if left else None
            staged.clear_state()
            staged.write_state(self._download.to_state(is_flowing=False, size=size))
        if left:
            await self._sink.open_file(left)
        return left, state.size

    async def _fetch(self) -> None:
        """Fetch from the located source; from the upstream if another source fails."""
        sources, sleep = self._download.sources, self._context.sleep
        source = await self._context.locator.locate(self._digest, sources.current)
        try:
            await fetch(source, self._sink, sources, sleep)
        except UpstreamError as error:
            if source.is_upstream or is_wrong_content(error):
                raise
            await fetch(sources.current, self._sink, sources, sleep)
        self._sink.finish()

    async def _commit(self, staged: StagedFile) -> None:
        """Store the verified file. If that fails, readers still have all bytes."""
        try:
            await self._context.store.commit(staged.path, self._digest)
        except OSError as error:
            self._sink.note_not_cached("disk", error.strerror or str(error))
            staged.discard()
            return
        possessors = self._download.find_possessors()
        await self._context.record(self._digest, self._download.written, possessors)
        staged.delete_state()  # last: until the row exists, the state file reserves the space
