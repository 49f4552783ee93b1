"""A reader of a blob in flight, for one repository."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from regmirror.blobs.local import read_pieces
from regmirror.downloads.download import Download
from regmirror.downloads.fetcher import Source
from regmirror.downloads.passthrough import PassThrough
from regmirror.errors import UpstreamError
from regmirror.oci.names import Digest, Repository


class Readership(Protocol):
    """What a follower needs of who shares downloads."""

    async def join(self, digest: Digest, source: Source) -> tuple[Follower, bool]: ...

    def leave(self, download: Download) -> None: ...

    def pass_from(self, download: Download, source: Source, offset: int) -> PassThrough: ...

    def pass_own(self, download: Download, source: Source, offset: int) -> PassThrough: ...


class Follower:
    """A reader of a download: a ``Blob``, for the repository of ``source``.

    Once the download has parted from its file, the rest passes through memory.
    """

    def __init__(self, download: Download, source: Source, readership: Readership) -> None:
        self._download: Download | None = download
        self._source, self._readership = source, readership
        self._relying: Repository | None = None
        self._has_read = False
        self._pass_through: PassThrough | None = None
        self.size = download.size
        download.readers += 1
        download.enter(source)

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
        return self._download is not None and self._download.detach_point is not None

    def proves(self, repository: Repository) -> bool:
        """Whether the upstream of ``repository`` has answered with content, and brought every byte.

        If so, the reader relies on that from now on: it gets nothing that another upstream brings
        before the whole is verified.
        """
        download = self._download
        if download is None or not download.started or download.origin.until is not None:
            return False
        proven = download.origin.is_of(repository)
        if proven:
            self._relying = repository
        return proven

    @property
    def is_foreign(self) -> bool:
        """Whether it brings unverified bytes of another upstream than the reader's."""
        download = self._download
        return download is not None and download.is_foreign_to(self._source.repository)

    @property
    def is_verified(self) -> bool:
        """Whether the blob is what its digest says."""
        return self._download is not None and self._download.verified

    def discard_read_marker(self) -> None:
        """What has been read so far was compared, and has not reached the client."""
        self._has_read = False

    def note_sample(self, start: int, data: bytes) -> None:
        """The repository's own upstream has sent these bytes, too, which are as in the file.

        The reader relies on those who bring them now, and gets nothing that others bring later.
        """
        download = self._download
        if download is not None and download.origin.is_of(download.source.repository):
            download.samples[self._source.repository] = (start, data)
            self._relying = download.source.repository

    async def wait_until_readable(self, offset: int) -> int:
        """See ``blobs.base.Blob``."""
        visible = await self._wait_until_readable(offset)
        self._has_read = self._has_read or visible > offset
        return visible

    async def _wait_until_readable(self, offset: int) -> int:
        if self._pass_through is None:
            visible = await self._wait_in_file(offset)
            if visible > offset or self._require().detach_point is None:
                return visible
        return await self._passage_from(offset).wait_until_readable(offset)

    async def _wait_in_file(self, offset: int) -> int:
        download = self._require()
        try:
            return await download.wait_until_readable(offset, self._relying)
        except UpstreamError:
            if self._has_read or download.blames(self._source.repository):
                raise
            if not await self._begin_again():
                raise
        return await self._wait_in_file(offset)

    async def _begin_again(self) -> bool:
        """Follow another download, after one that failed by another repository's fault before this
        reader had a byte; false if what the client was told does not fit that one.
        """
        other, _ = await self._readership.join(self._require().digest, self._source)
        fits = other.size == self.size and other.proves(self._source.repository)
        if not fits or self._download is None:
            other.close()
            return False
        left, self._download = self._download, other.hand_over()
        left.readers -= 1
        left.withdraw(self._source)
        self._readership.leave(left)
        self._relying = self._source.repository
        return True

    async def read(self, start: int, stop: int) -> AsyncIterator[bytes]:
        """See ``blobs.base.Blob``; to be waited for by ``wait_until_readable`` first."""
        if self._pass_through is not None:
            pieces = self._pass_through.read(start, stop)
        else:
            pieces = read_pieces(self._require().descriptor, start, stop)
        async for piece in pieces:
            yield piece

    def close(self) -> None:
        download, self._download = self._download, None
        if download is None:
            return
        if self._pass_through is not None:
            self._pass_through.close()
            download.past -= 1
        download.readers -= 1
        download.withdraw(self._source)
        self._readership.leave(download)

    def hand_over(self) -> Download | None:
        """Let another reader follow the download in place of this one."""
        download, self._download = self._download, None
        return download

    def _passage_from(self, offset: int) -> PassThrough:
        """The passage that brings the bytes from ``offset``; another one after a jump."""
        download, pass_through = self._require(), self._pass_through
        if pass_through is None:
            download.past += 1
        elif not pass_through.reaches(offset):
            pass_through.close()
            pass_through = None
        if pass_through is None:
            is_own = self._relying is not None and download.origin.until is not None
            make = self._readership.pass_own if is_own else self._readership.pass_from
            pass_through = self._pass_through = make(download, self._source, offset)
        return pass_through

    def _require(self) -> Download:
        if self._download is None:
            raise ValueError("the blob has been closed")
        return self._download
