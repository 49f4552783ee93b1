"""Blobs in flight: one writer, many readers, one growing file.

A download belongs to the process, not to the client that caused it. Every reader, the first
one included, follows the file on disk; the last byte is held back until the digest has been
verified. How bytes get into the file is ``transfer.py``; here is who shares it.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field

from regmirror.errors import RegistryError, Unavailable, UpstreamDenied, UpstreamNotFound
from regmirror.events import DownloadEnded, DownloadStarted, FollowersChanged
from regmirror.inflight import Download, Follower, Source
from regmirror.names import Digest
from regmirror.transfer import Transfer, Workshop


@dataclass
class Downloads:
    """Every download of this process, by digest."""

    workshop: Workshop
    _active: dict[Digest, Download] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self._active)

    async def join(self, digest: Digest, source: Source) -> tuple[Follower, bool]:
        """Follow the blob's download, started from ``source`` if there is none.

        Returns once the upstream has answered; the flag says whether it was in flight before.
        Raises RegistryError if the upstream has no such content for us. What another repository
        is refused says nothing about this one: then its own source is asked.
        """
        other = self._active.get(digest)
        if other is not None and other.source.repository != source.repository:
            with suppress(UpstreamNotFound, UpstreamDenied):
                return await self._join(digest, source)
        return await self._join(digest, source)

    async def _join(self, digest: Digest, source: Source) -> tuple[Follower, bool]:
        download = self._active.get(digest)
        joined = download is not None
        if download is None:
            download = self._start(digest, source)
        download.readers += 1  # keeps the file open while this one waits
        try:
            await download.wait_started()
            self.workshop.emit(FollowersChanged(1))
            return Follower(download, self._leave), joined
        finally:
            download.readers -= 1
            self._release(download)

    async def close(self) -> None:
        """Stop every download; what has arrived stays for the next start to resume."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, digest: Digest, source: Source) -> Download:
        download = self._active[digest] = Download(digest, source)
        self.workshop.emit(DownloadStarted(source.repository.upstream))
        task = asyncio.create_task(self._run(download))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return download

    async def _run(self, download: Download) -> None:
        began, error = time.monotonic(), ""
        try:
            await Transfer(self.workshop, download).run()
        except RegistryError as failure:
            error = str(failure)
            download.fail(failure)
        except OSError as failure:
            error = f"cannot be stored: {failure.strerror or failure}"
            download.fail(Unavailable(f"the blob {error}", retry_after=10))
        except BaseException as failure:
            error = "stopped" if isinstance(failure, asyncio.CancelledError) else repr(failure)
            download.fail(Unavailable(f"the download was interrupted: {error}", retry_after=1))
            raise
        finally:
            self._active.pop(download.digest, None)
            self._release(download)
            self.workshop.emit(
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

    def _leave(self, download: Download) -> None:
        self.workshop.emit(FollowersChanged(-1))
        self._release(download)

    def _release(self, download: Download) -> None:
        """Close the file when the download has ended and the last reader has left."""
        idle = download.readers == 0 and self._active.get(download.digest) is not download
        if idle and download.descriptor >= 0:
            os.close(download.descriptor)
            download.descriptor = -1
