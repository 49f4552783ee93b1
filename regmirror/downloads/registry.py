"""The downloads of this process: each cold blob is fetched once, and all its readers share a file.

A download belongs to the process, not to the client that caused it. Every reader follows the file
on disk, and the last byte is withheld until the digest is verified. ``transfer`` brings the bytes;
this module starts, joins and ends downloads. Nobody joins a download that is detached from its
file: the next request tries the disk again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

from regmirror.blobs.staging import StagedFile
from regmirror.downloads.download import Download
from regmirror.downloads.follower import Follower
from regmirror.downloads.passthrough import DetachPoint, PassThrough
from regmirror.downloads.source import Body, Source
from regmirror.downloads.start_limiter import StartLimiter
from regmirror.downloads.transfer import Transfer
from regmirror.downloads.transfer_context import TransferContext
from regmirror.errors import RegistryError, Unavailable, UpstreamError
from regmirror.oci.names import Digest, Repository
from regmirror.telemetry.events import DownloadEnded, DownloadStarted, FollowersChanged, NotStored

JOINS_MAX: Final = 8  # downloads that a reader joins, when each fails because of another repository
ABANDONED: Final = 0.1  # seconds after which a download without waiting readers is cancelled


@dataclass
class Downloads:
    """Every download of this process, by digest."""

    context: TransferContext
    _active: dict[Digest, Download] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _limiter: StartLimiter = field(default_factory=StartLimiter)

    def __len__(self) -> int:
        return len(self._active)

    def find(self, digest: Digest) -> Download | None:
        """Return the download that ``join`` would follow; None if it would start one."""
        download = self._active.get(digest)
        return download if download is not None and download.is_open else None

    def is_proven(self, digest: Digest, repository: Repository) -> bool:
        """Whether the upstream of ``repository`` has sent all of a blob in flight, or a matching sample."""
        download = self._active.get(digest)
        return download is not None and download.is_proven(repository)

    async def join(self, digest: Digest, source: Source) -> tuple[Follower, bool]:
        """Follow the blob's download, started from ``source`` if there is none.

        Returns when content arrives; the flag is true if the download existed before. Raises
        RegistryError if the upstream of ``source`` fails. A failure of another repository's
        upstream does not concern this reader.
        """
        for _ in range(JOINS_MAX):
            download = self.find(digest)
            is_joined = download is not None
            if download is None:
                download = self._start(digest, source)
            with download.reader(source):
                try:
                    await self._wait_started(download, source.repository)
                    return Follower(download, source, self), is_joined
                except RegistryError as error:
                    if download.blames(source.repository):
                        raise
                    failure = error
        raise Unavailable(f"other downloads of this blob failed: {failure.message}", retry_after=1)

    async def follow(self, digest: Digest) -> Follower | None:
        """Follow a download of this process, or of another process on this store; None if there is none.

        Makes no request, and never becomes the writer: when the writer ends early, reading fails.
        Raises RegistryError if the download fails before content arrives.
        """
        download = self.find(digest) or self._watch(digest)
        if download is None:
            return None
        with download.reader(None):
            await self._wait_started(download, None)
            return Follower(download, None, self)

    async def fetch_alone(self, digest: Digest, source: Source) -> Follower:
        """Fetch the blob for one reader, and store nothing.

        For a blob whose file is being written with unverified bytes of another upstream.
        """
        download = Download(digest, source)
        detach_point = DetachPoint(digest, source, 0, b"", digest.hasher())
        pass_through = self._pass_through(detach_point, 0, None)
        try:
            await pass_through.wait_started()
        except BaseException:
            pass_through.close()
            raise
        self.context.emit(NotStored("stalled", f"{digest} is being fetched from another upstream"))
        download.continue_provenance(source, 0)
        download.detach(detach_point, pass_through)
        download.begin(pass_through.size)
        self.context.emit(FollowersChanged(1))
        return Follower(download, source, self)

    async def _wait_started(self, download: Download, repository: Repository | None) -> None:
        """Wait as a reader for the first content, and count a follower."""
        try:
            await download.wait_started(repository)
        finally:
            if download.is_unwanted:
                # Later, because a client whose deadline is extended waits again in the same moment.
                asyncio.get_running_loop().call_later(ABANDONED, download.cancel_if_unwanted)
        self.context.emit(FollowersChanged(1))

    def note_left(self) -> None:
        """A follower has left its download."""
        self.context.emit(FollowersChanged(-1))

    async def drain(self, digest: Digest | None = None) -> None:
        """Wait until the downloads that are in flight now have ended, or only that of ``digest``."""
        tasks = [task for task in self._tasks if digest is None or task.get_name() == digest]
        if tasks:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Stop every download; the next start resumes from the bytes that have arrived."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def pass_through(self, download: Download, source: Source, offset: int, *, is_own: bool) -> PassThrough:
        """Return the bytes of a detached download from ``offset`` on, for one reader.

        The first reader gets the fetch that is in progress, unless ``is_own``: its bytes must come
        from its own repository's upstream.
        """
        spare = None if is_own else download.take_spare(offset)
        if spare is not None:
            return spare
        if download.detach_point is None:
            raise ValueError("the download is not detached: its bytes are in the file")
        return self._pass_through(replace(download.detach_point, source=source), offset, download.size)

    def _pass_through(self, detach_point: DetachPoint, offset: int, size: int | None) -> PassThrough:
        context = self.context
        pass_through = PassThrough(detach_point, offset, size, threads=context.bulk, emit=context.emit)
        pass_through.feed_by(self._spawn(pass_through.run(context.sleep)))
        return pass_through

    def _start(self, digest: Digest, source: Source) -> Download:
        download = self._active[digest] = Download(digest, source)
        self.context.emit(DownloadStarted(source.repository.upstream))
        task = self._spawn(self._run(download))
        task.set_name(digest)
        download.run_by(task)
        return download

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self, download: Download) -> None:
        began = time.monotonic()
        try:
            with self._ending(download):
                async with self._limiter.admit(download):
                    await Transfer(self.context, download).run()
        finally:
            if self._active.get(download.digest) is download:
                del self._active[download.digest]
            self.context.emit(
                DownloadEnded(
                    download.repository.upstream,
                    download.repository.name,
                    download.digest,
                    download.written,
                    time.monotonic() - began,
                    download.sources.resumed,
                    download.failure or download.not_cached_reason,
                )
            )

    @contextmanager
    def _ending(self, download: Download) -> Iterator[None]:
        """End the download with the block; its readers receive the failure."""
        try:
            yield
        except UpstreamError as error:
            download.fail(error, download.sources.suspected)
        except RegistryError as error:
            download.fail(error)
        except OSError as error:
            failure = f"cannot be stored: {error.strerror or error}"
            download.fail(Unavailable(f"the blob {failure}", retry_after=10), failure=failure)
        except BaseException as error:
            failure = "stopped" if isinstance(error, asyncio.CancelledError) else repr(error)
            failure = download.not_cached_reason or failure
            interrupted = Unavailable(f"the download was interrupted: {failure}", retry_after=1)
            download.fail(interrupted, failure=failure)
            raise
        finally:
            download.end()

    def _watch(self, digest: Digest) -> Download | None:
        """Follow the file that another process writes, if one does."""
        staged = self.context.staging.find(digest)
        if staged is None:
            return None
        state = staged.read_state()
        name = state.repository.removeprefix(f"{state.upstream}/")
        if not state.upstream or not name:  # the writer has not begun
            staged.close()
            return None
        download = Download(digest, Source(Repository(state.upstream, name), _request_nothing))
        download.run_by(self._spawn(self._run_watch(download, staged)))
        return download

    async def _run_watch(self, download: Download, staged: StagedFile) -> None:
        with self._ending(download):
            try:
                await Transfer(self.context, download).watch(staged)
            finally:
                staged.close()


def _request_nothing(offset: int) -> AbstractAsyncContextManager[Body]:
    raise ValueError("a download that is only watched makes no request")
