"""Blobs in flight: one writer, many readers, one growing file.

A download belongs to the process, not to the client that caused it. Every reader, the first
one included, follows the file on disk; the last byte is held back until the digest has been
verified. How bytes get into the file is ``transfer.py``; here is who shares it. A download that
cannot be kept is shared by nobody else from then on: the next pull tries the disk again.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, Final

from regmirror.downloads.download import Download
from regmirror.downloads.fetcher import Source
from regmirror.downloads.follower import Follower
from regmirror.downloads.passthrough import DetachPoint, PassThrough, run_pass_through
from regmirror.downloads.provenance import Provenance
from regmirror.downloads.start_limiter import StartLimiter
from regmirror.downloads.transfer import Transfer
from regmirror.downloads.transfer_context import TransferContext
from regmirror.errors import RegistryError, Unavailable, UpstreamError
from regmirror.oci.names import Digest, Repository
from regmirror.telemetry.events import DownloadEnded, DownloadStarted, FollowersChanged, NotStored

JOINS_MAX: Final = 8  # downloads that one reader joins, should each fail by another one's fault
ABANDONED: Final = 0.1  # seconds until what nobody waits for is cancelled


@dataclass
class Downloads:
    """Every download of this process, by digest."""

    context: TransferContext
    _active: dict[Digest, Download] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _starting: StartLimiter = field(default_factory=StartLimiter)

    def __len__(self) -> int:
        return len(self._active)

    def find(self, digest: Digest) -> Download | None:
        """The download that ``join`` would follow."""
        download = self._active.get(digest)
        return download if download is not None and download.is_open else None

    def is_proven(self, digest: Digest, repository: Repository) -> bool:
        """Whether a blob in flight is open to the repository: its upstream has brought all of it, or
        sent a part of it that was the same.
        """
        download = self._active.get(digest)
        if download is None or not (download.verified or repository in download.samples):
            return False
        return repository in download.samples or download.proven_for == repository

    async def join(self, digest: Digest, source: Source) -> tuple[Follower, bool]:
        """Follow the blob's download, started from ``source`` if there is none.

        Returns once an upstream has answered with it; the flag says whether it was in flight
        before. Raises RegistryError if the repository's own upstream has no such content for us.
        What another repository is refused says nothing about this one.
        """
        for _ in range(JOINS_MAX):
            download = self.find(digest)
            joined = download is not None
            if download is None:
                download = self._start(digest, source)
            download.enter(source)
            try:
                await self._wait_started(download, source)
            except RegistryError as error:
                if download.blames(source.repository):
                    raise
                failure = error
            else:
                return Follower(download, source, self), joined
            finally:
                download.readers -= 1
                download.withdraw(source)
                self._release(download)
        raise Unavailable(f"other downloads of this blob failed: {failure.message}", retry_after=1)

    async def fetch_alone(self, digest: Digest, source: Source) -> Follower:
        """Follow a download of this reader's own, of which nothing is stored: the blob's file is being
        written with the bytes of another upstream, and those are not verified yet.
        """
        download, shop = Download(digest, source), self.context
        detach_point = DetachPoint(digest, source, 0, b"", digest.hasher())
        pass_through = PassThrough(detach_point, 0, None, threads=shop.bulk, emit=shop.emit)
        pass_through.producer = self._begin(run_pass_through(source, pass_through, shop.sleep))
        try:
            await pass_through.wait_begun()
        except BaseException:
            pass_through.close()
            raise
        shop.emit(NotStored("stalled", f"{digest} is being fetched from another upstream"))
        download.origin = Provenance(str(source.repository))
        download.part(detach_point, pass_through)
        download.begin(pass_through.size)
        shop.emit(FollowersChanged(1))
        return Follower(download, source, self)

    async def _wait_started(self, download: Download, source: Source) -> None:
        """Wait as a reader, who keeps the file open; the caller lets go of it."""
        download.readers += 1
        download.waiting += 1
        try:
            await download.wait_started(source.repository)
        finally:
            download.waiting -= 1
            if not download.started and not download.waiting:
                # A moment later: a client's deadline may be extended, and then it waits again.
                asyncio.get_running_loop().call_later(ABANDONED, self._abandon, download)
        self.context.emit(FollowersChanged(1))

    def _abandon(self, download: Download) -> None:
        """End a download that no upstream has answered and nobody waits for."""
        if download.task is not None and not download.started and not download.waiting:
            download.is_over = True
            download.task.cancel()

    async def drain(self, digest: Digest | None = None) -> None:
        """Wait until every download that is in flight now, or that of ``digest``, has ended."""
        tasks = [task for task in self._tasks if digest is None or task.get_name() == digest]
        if tasks:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Stop every download; what has arrived stays for the next start to resume."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, digest: Digest, source: Source) -> Download:
        download = self._active[digest] = Download(digest, source)
        self.context.emit(DownloadStarted(source.repository.upstream))
        download.task = self._begin(self._run(download))
        download.task.set_name(digest)
        return download

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def pass_from(self, download: Download, source: Source, offset: int) -> PassThrough:
        """The bytes of a download that is not kept, from ``offset`` on, for one reader."""
        pass_through = download.take_spare(offset)
        if pass_through is None:
            return self.pass_own(download, source, offset)
        self._release(download)
        return pass_through

    def pass_own(self, download: Download, source: Source, offset: int) -> PassThrough:
        """Such bytes, fetched for this reader from its own repository's upstream."""
        if download.detach_point is None:
            raise ValueError("the download is kept: its bytes are in the file")
        detach_point = replace(download.detach_point, source=source)
        threads, emit = self.context.bulk, self.context.emit
        pass_through = PassThrough(detach_point, offset, download.size, threads=threads, emit=emit)
        pass_through.producer = self._begin(run_pass_through(source, pass_through, self.context.sleep))
        self._release(download)
        return pass_through

    async def _run(self, download: Download) -> None:
        began, error = time.monotonic(), ""
        try:
            async with self._starting.admitted(download):
                await Transfer(self.context, download).run()
            error = download.not_cached_reason
        except UpstreamError as failure:
            error = str(failure)
            download.fail(failure, download.suspect or str(download.source.repository))
        except RegistryError as failure:
            error = str(failure)
            download.fail(failure)
        except OSError as failure:
            error = f"cannot be stored: {failure.strerror or failure}"
            download.fail(Unavailable(f"the blob {error}", retry_after=10))
        except BaseException as failure:
            error = "stopped" if isinstance(failure, asyncio.CancelledError) else repr(failure)
            error = download.not_cached_reason or error
            download.fail(Unavailable(f"the download was interrupted: {error}", retry_after=1))
            raise
        finally:
            download.is_over = True
            if self._active.get(download.digest) is download:
                del self._active[download.digest]
            self._release(download)
            self.context.emit(
                DownloadEnded(
                    download.source.repository.upstream,
                    download.source.repository.name,
                    download.digest,
                    download.written,
                    time.monotonic() - began,
                    download.resumed,
                    error,
                )
            )

    def leave(self, download: Download) -> None:
        """A follower has left, or follows another download."""
        self.context.emit(FollowersChanged(-1))
        self._release(download)

    def _release(self, download: Download) -> None:
        """Close the file when the download has ended or parted and nobody needs it any more."""
        if download.readers == 0 and download.spare is not None:
            download.spare.close()
            download.spare = None
        is_over = download.detach_point is not None or self._active.get(download.digest) is not download
        if is_over and download.readers == download.past and download.descriptor >= 0:
            os.close(download.descriptor)
            download.descriptor = -1
