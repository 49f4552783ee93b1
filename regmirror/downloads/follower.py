"""A reader of a download."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from regmirror.blobs.local import read_pieces
from regmirror.downloads.download import Download
from regmirror.downloads.passthrough import PassThrough
from regmirror.downloads.source import Source
from regmirror.errors import Unavailable, UpstreamError
from regmirror.oci.names import Digest, Repository


class Downloads(Protocol):
    """The part of ``registry.Downloads`` that a follower needs."""

    async def join(self, digest: Digest, source: Source) -> tuple[Follower, bool]: ...

    def note_left(self) -> None: ...

    def pass_through(
        self, download: Download, source: Source, offset: int, *, is_own: bool
    ) -> PassThrough: ...


class Follower:
    """A ``Blob`` that reads a download, for the repository of ``source``.

    After the detach point the bytes come from a pass-through. A follower without ``source`` causes
    no request: it fails there with Unavailable.
    """

    def __init__(self, download: Download, source: Source | None, downloads: Downloads) -> None:
        self._download: Download | None = download
        self._source, self._downloads = source, downloads
        self._relying: Repository | None = None  # whose upstream's bytes alone this reader may have
        self._has_read = False
        self._pass_through: PassThrough | None = None
        self.size = download.size
        download.enter(source)

    @property
    def descriptor(self) -> int | None:
        """The file; None after the detach point, where ``read`` has the bytes."""
        download = self._download
        if download is None or download.descriptor < 0 or self.is_passed_through:
            return None
        return download.descriptor

    @property
    def is_passed_through(self) -> bool:
        """Whether the blob will not be stored."""
        return self._download is not None and self._download.detach_point is not None

    def proves(self, repository: Repository) -> bool:
        """Whether the upstream of ``repository`` has responded with content, and sent every byte so far.

        If so, the reader relies on this upstream from now on: it gets no bytes of another one
        before the whole blob is verified.
        """
        download = self._download
        if download is None or not download.started or download.provenance.until is not None:
            return False
        is_proven = download.provenance.is_of(repository)
        if is_proven:
            self._relying = repository
        return is_proven

    @property
    def is_foreign(self) -> bool:
        """Whether it reads unverified bytes of another upstream than the reader's."""
        if self._download is None or self._source is None:
            return False
        return self._download.is_foreign_to(self._source.repository)

    @property
    def is_verified(self) -> bool:
        """Whether the bytes match the digest."""
        return self._download is not None and self._download.verified

    def mark_unread(self) -> None:
        """The bytes read so far were compared only: none has reached the client."""
        self._has_read = False

    def note_sample(self, start: int, data: bytes) -> None:
        """The reader's own upstream has sent ``data``, which is in the file at ``start``.

        The reader relies on the upstream that sends the file now, and gets no bytes of a later one.
        """
        if self._download is not None and self._source is not None:
            relying = self._download.add_sample(self._source.repository, start, data)
            self._relying = relying or self._relying

    async def wait_until_readable(self, offset: int) -> int:
        """Return the limit of the readable bytes once it exceeds ``offset`` (see ``blobs.base.Blob``)."""
        limit = await self._wait_until_readable(offset)
        self._has_read = self._has_read or limit > offset
        return limit

    async def _wait_until_readable(self, offset: int) -> int:
        if self._pass_through is None:
            limit = await self._wait_in_file(offset)
            if limit > offset or self._require_download().detach_point is None:
                return limit
        return await self._pass_through_from(offset).wait_until_readable(offset)

    async def _wait_in_file(self, offset: int) -> int:
        download = self._require_download()
        try:
            return await download.wait_until_readable(offset, self._relying)
        except UpstreamError:
            source = self._source
            if self._has_read or source is None or download.blames(source.repository):
                raise
            if not await self._join_another(source):
                raise
        return await self._wait_in_file(offset)

    async def _join_another(self, source: Source) -> bool:
        """Follow another download, after one that failed because of another repository.

        Returns False if that one does not fit the headers that the client has received.
        """
        other, _ = await self._downloads.join(self._require_download().digest, source)
        fits = other.size == self.size and other.proves(source.repository)
        if not fits or self._download is None:
            other.close()
            return False
        left, self._download = self._download, other.hand_over()
        left.leave(source)
        self._downloads.note_left()
        self._relying = source.repository
        return True

    async def read(self, start: int, stop: int) -> AsyncIterator[bytes]:
        """Yield the bytes from ``start`` to ``stop``, which ``wait_until_readable`` has returned."""
        if self._pass_through is not None:
            pieces = self._pass_through.read(start, stop)
        else:
            pieces = read_pieces(self._require_download().descriptor, start, stop)
        async for piece in pieces:
            yield piece

    def close(self) -> None:
        download, self._download = self._download, None
        if download is None:
            return
        if self._pass_through is not None:
            self._pass_through.close()
        download.leave(self._source, is_past_file=self._pass_through is not None)
        self._downloads.note_left()

    def hand_over(self) -> Download | None:
        """Let another reader follow the download in place of this one."""
        download, self._download = self._download, None
        return download

    def _pass_through_from(self, offset: int) -> PassThrough:
        """Return the pass-through that brings the bytes from ``offset``; a new one after a jump."""
        download, source, current = self._require_download(), self._source, self._pass_through
        if source is None:
            raise Unavailable("the blob is no longer stored while it arrives", retry_after=1)
        if current is None:
            download.pass_file()
        elif current.reaches(offset):
            return current
        else:
            current.close()
        is_own = self._relying is not None and download.provenance.until is not None
        self._pass_through = self._downloads.pass_through(download, source, offset, is_own=is_own)
        return self._pass_through

    def _require_download(self) -> Download:
        if self._download is None:
            raise ValueError("the blob is closed")
        return self._download
