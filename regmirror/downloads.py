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
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from regmirror.errors import RegistryError, Unavailable, UpstreamDenied, UpstreamNotFound
from regmirror.events import DownloadEnded, DownloadStarted, FollowersChanged
from regmirror.fetching import Source
from regmirror.inflight import Download, Follower
from regmirror.names import Digest
from regmirror.passing import Passage, pass_on
from regmirror.transfer import Transfer, Workshop


@dataclass
class Downloads:
    """Every download of this process, by digest."""

    workshop: Workshop
    _active: dict[Digest, Download] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self._active)

    def find(self, digest: Digest) -> Download | None:
        """The download that ``join`` would follow."""
        download = self._active.get(digest)
        return download if download is not None and download.parting is None else None

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
        joined = download is not None and download.parting is None
        if download is None or not joined:
            download = self._start(digest, source)
        else:
            download.offer(source)
        download.readers += 1  # keeps the file open while this one waits
        try:
            await download.wait_started()
            self.workshop.emit(FollowersChanged(1))
            return Follower(download, self._leave, self._pass_from), joined
        finally:
            download.readers -= 1
            self._release(download)

    async def settle(self, digest: Digest | None = None) -> None:
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
        self.workshop.emit(DownloadStarted(source.repository.upstream))
        self._begin(self._run(download)).set_name(digest)
        return download

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _pass_from(self, download: Download, offset: int) -> Passage:
        """The bytes of a download that is not kept, from ``offset`` on, for one reader."""
        passage, parting = download.take_spare(offset), download.parting
        if parting is None:
            raise ValueError("the download is kept: its bytes are in the file")
        if passage is None:
            threads, emit = self.workshop.bulk, self.workshop.emit
            passage = Passage(parting, offset, download.size, threads=threads, emit=emit)
            passage.producer = self._begin(pass_on(parting.source, passage, self.workshop.sleep))
        self._release(download)
        return passage

    async def _run(self, download: Download) -> None:
        began, error = time.monotonic(), ""
        try:
            await Transfer(self.workshop, download).run()
            error = download.unkept
        except RegistryError as failure:
            error = str(failure)
            download.fail(failure)
        except OSError as failure:
            error = f"cannot be stored: {failure.strerror or failure}"
            download.fail(Unavailable(f"the blob {error}", retry_after=10))
        except BaseException as failure:
            error = "stopped" if isinstance(failure, asyncio.CancelledError) else repr(failure)
            error = download.unkept or error
            download.fail(Unavailable(f"the download was interrupted: {error}", retry_after=1))
            raise
        finally:
            if self._active.get(download.digest) is download:
                del self._active[download.digest]
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
        """Close the file when the download has ended or parted and nobody needs it any more."""
        if download.readers == 0 and download.spare is not None:
            download.spare.close()
            download.spare = None
        is_over = download.parting is not None or self._active.get(download.digest) is not download
        if is_over and download.readers == download.past and download.descriptor >= 0:
            os.close(download.descriptor)
            download.descriptor = -1
