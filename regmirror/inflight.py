"""One blob in flight as its readers see it: a growing file and what is known of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from regmirror.blobs.local import read_pieces
from regmirror.errors import RegistryError
from regmirror.fetching import Source
from regmirror.names import Digest, Repository
from regmirror.passing import Parting, Passage


class Download:
    """One blob in flight, as its readers see it."""

    def __init__(self, digest: Digest, source: Source) -> None:
        self.digest = digest
        self.source = source
        self.began = asyncio.get_running_loop().time()
        self.size: int | None = None
        self.started = False  # the upstream has answered with content
        self.written = 0  # bytes in the file, by whichever process
        self.verified = False
        self.answered = False  # by ``source`` itself, to this process
        self.error: RegistryError | None = None
        self.descriptor = -1
        self.readers = 0
        self.resumed = 0
        self._others: list[Source] = []  # of other upstreams, should this one fail or hang
        self._asked = {source.repository.upstream}
        self.unkept = ""  # why the blob is not stored although it could be had
        self.parting: Parting | None = None  # the file ends here; the rest passes through memory
        self.spare: Passage | None = None  # what the parted download still brings: for one reader
        self.past = 0  # readers that need the file no more
        self._changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def visible(self) -> int:
        """Bytes of the file that readers may have: all but the last until the digest is verified."""
        if self.parting is not None:
            return self.parting.start
        if self.verified:
            return self.written
        limit = self.written if self.size is None else min(self.written, self.size)
        whole = self.size is None or limit == self.size
        return max(0, limit - 1) if whole else limit

    def begin(self, size: int | None) -> None:
        """The upstream has answered; ``size`` if it told."""
        self.started = True
        self.size = size if size is not None else self.size
        self.change()

    def advance(self, written: int) -> None:
        if written != self.written:
            self.written = written
            self.change()

    def verify(self) -> None:
        """The bytes are what the digest says: the last one may go."""
        self.started = self.verified = True
        self.size = self.written
        self.change()

    def fail(self, error: RegistryError) -> None:
        self.error = error
        self.change()

    def offer(self, source: Source) -> None:
        """Somebody wants the blob from ``source``, which may be of another upstream."""
        if source.repository.upstream not in self._asked:
            self._asked.add(source.repository.upstream)
            self._others.append(source)

    def take_other(self) -> Source | None:
        """The next upstream's source, from now on the download's own."""
        if not self._others:
            return None
        self.source, self.answered = self._others.pop(0), False
        return self.source

    def part(self, parting: Parting, spare: Passage) -> None:
        """The file grows no more; ``spare`` brings the rest for the first who needs it."""
        self.parting, self.spare = parting, spare
        self.change()

    def take_spare(self, offset: int) -> Passage | None:
        """What the download still brings, if it comes from ``offset``; else it is given up.

        Kept waiting it would hold a connection that other readers may be waiting for.
        """
        spare, self.spare = self.spare, None
        if spare is not None and not spare.reaches(offset):
            spare.close()
            return None
        return spare

    def change(self) -> None:
        """Wake whoever waits."""
        changed, self._changed = self._changed, asyncio.get_running_loop().create_future()
        changed.set_result(None)

    async def wait_started(self) -> None:
        """Until the upstream's headers are here; raises what went wrong instead.

        An empty body has no last byte to hold back, so that there the verdict is waited for.
        """
        while not self.started or (self.size == 0 and not self.verified):
            if self.error is not None:
                raise self.error
            await asyncio.shield(self._changed)

    async def wait_beyond(self, offset: int) -> int:
        """See ``blobs.base.Blob``; returns as well when the file grows no more."""
        while True:
            if self.visible > offset or self.verified or self.parting is not None:
                return self.visible
            if self.error is not None:
                raise self.error
            await asyncio.shield(self._changed)


class Follower:
    """A reader of a download: a ``Blob``.

    Once the download has parted from its file, ``pass_from`` brings the bytes from an offset on.
    """

    def __init__(
        self,
        download: Download,
        release: Callable[[Download], None],
        pass_from: Callable[[Download, int], Passage],
    ) -> None:
        self._download: Download | None = download
        self._release, self._pass_from = release, pass_from
        self._passage: Passage | None = None
        self.size = download.size
        download.readers += 1

    @property
    def descriptor(self) -> int | None:
        """None once the rest passes through memory: ``read`` has all that is left."""
        download = self._download
        if download is None or download.descriptor < 0 or self.is_passing:
            return None
        return download.descriptor

    @property
    def is_passing(self) -> bool:
        """Whether the blob will not be stored."""
        return self._download is not None and self._download.parting is not None

    def proves(self, repository: Repository) -> bool:
        """Whether the upstream has answered this download for ``repository`` with content."""
        download = self._download
        return download is not None and download.answered and download.source.repository == repository

    async def wait_beyond(self, offset: int) -> int:
        """See ``blobs.base.Blob``."""
        download = self._require()
        if self._passage is None:
            visible = await download.wait_beyond(offset)
            if visible > offset or download.parting is None:
                return visible
        return await self._passage_from(offset).wait_beyond(offset)

    async def read(self, start: int, stop: int) -> AsyncIterator[bytes]:
        """See ``blobs.base.Blob``; to be waited for by ``wait_beyond`` first."""
        if self._passage is not None:
            pieces = self._passage.read(start, stop)
        else:
            pieces = read_pieces(self._require().descriptor, start, stop)
        async for piece in pieces:
            yield piece

    def close(self) -> None:
        download, self._download = self._download, None
        if download is None:
            return
        if self._passage is not None:
            self._passage.close()
            download.past -= 1
        download.readers -= 1
        self._release(download)

    def _passage_from(self, offset: int) -> Passage:
        """The passage that brings the bytes from ``offset``; another one after a jump."""
        download, passage = self._require(), self._passage
        if passage is None:
            download.past += 1
        elif not passage.reaches(offset):
            passage.close()
            passage = None
        if passage is None:
            passage = self._passage = self._pass_from(download, offset)
        return passage

    def _require(self) -> Download:
        if self._download is None:
            raise ValueError("the blob has been closed")
        return self._download
