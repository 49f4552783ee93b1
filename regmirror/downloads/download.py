"""The state of one download: what its readers may read, its sources, and how it ended.

Other modules change it by method calls only. It is used on the event loop alone; the file itself is written
by ``file_sink``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from regmirror.blobs.staging import DownloadState, StagedFile
from regmirror.downloads.passthrough import DetachPoint, PassThrough
from regmirror.downloads.provenance import Provenance
from regmirror.downloads.source import Source
from regmirror.downloads.source_queue import NOBODY, SourceQueue
from regmirror.errors import RegistryError, Unavailable
from regmirror.oci.names import Digest, Repository

EVERYBODY: Final = ""  # blamed for a failure that concerns the readers of every repository
PREFIX_MIN: Final = 64 * 1024  # correct bytes of an upstream that prove that it has the whole blob


class Download:
    """One blob on its way from upstream, as its readers see it.

    Several repositories may request it, each from its own upstream. When one upstream rejects the
    request, only the readers of that repository fail.
    """

    def __init__(self, digest: Digest, source: Source) -> None:
        self.digest = digest
        self.sources = SourceQueue(source, self.notify)
        self.began = asyncio.get_running_loop().time()
        self.size: int | None = None
        self.started = False  # content has arrived
        self.written = 0  # bytes in the file, whichever process writes them
        self.verified = False
        self.provenance = Provenance()
        self.error: RegistryError | None = None
        self.failure = ""  # the text of ``error`` for the log
        self.readers = 0
        self.descriptor = -1  # of the file, for readers
        self.not_cached_reason = ""
        self.detach_point: DetachPoint | None = None
        self._spare: PassThrough | None = None  # the remaining bytes of a detached download, for one reader
        self._blamed = EVERYBODY
        self._waiting = 0  # readers that wait for the first response
        self._past_file = 0  # readers that have read the file to the detach point
        self._samples: dict[Repository, tuple[int, bytes]] = {}  # offset and bytes sent by its upstream
        self._task: asyncio.Task[None] | None = None
        self._has_ended = False
        self._on_started: Callable[[], None] = lambda: None
        self._changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def repository(self) -> Repository:
        """The repository whose upstream is fetched from."""
        return self.sources.current.repository

    @property
    def is_open(self) -> bool:
        """Whether a further reader may join."""
        return self.error is None and self.detach_point is None and not self._has_ended

    # --- progress ------------------------------------------------------------------------

    @property
    def visible(self) -> int:
        """Bytes of the file that readers may have: all but the last until the digest is verified."""
        if self.detach_point is not None:
            return self.detach_point.start
        if self.verified:
            return self.written
        limit = self.written if self.size is None else min(self.written, self.size)
        may_be_all = self.size is None or limit == self.size
        return max(0, limit - 1) if may_be_all else limit

    def visible_to(self, repository: Repository) -> int:
        """Bytes for a reader that is entitled only to the bytes of its repository's upstream.

        Bytes that another upstream sent follow after the verification, if this upstream sent the
        first PREFIX_MIN bytes at least.
        """
        if not self.provenance.is_of(repository):
            return 0
        until = self.provenance.until
        if until is None or (self.verified and until >= PREFIX_MIN):
            return self.visible
        return min(until, self.visible)

    def begin(self, size: int | None) -> None:
        """Content arrives, of ``size`` if that is known: readers may start."""
        self._mark_started()
        self.size = size if size is not None else self.size
        self.notify()

    def note_response(self, source: Source, size: int | None) -> None:
        """``source`` has responded. Readers start at ``begin``, when its bytes can be taken."""
        states_size = size is not None and size != self.size
        self.sources.note_response(source, states_size=states_size)
        if states_size:
            self.size = size

    def continue_provenance(self, source: Source, offset: int) -> bool:
        """``source`` sends the bytes from ``offset`` on; returns whether the sender changes there."""
        before = self.provenance
        sender = str(source.repository) if source.is_upstream else ""
        self.provenance = before.continued_by(sender, offset)
        return self.provenance.until != before.until

    def forget_provenance(self) -> None:
        """No upstream has sent these bytes now: they prove nothing."""
        self.provenance = Provenance()

    def advance(self, written: int) -> None:
        """The file has ``written`` bytes."""
        if written != self.written:
            self.written = written
            self.notify()

    def verify(self) -> None:
        """The bytes match the digest: release the last one."""
        self._mark_started()
        self.verified = True
        self.size = self.written
        self.notify()

    def open_file(self, staged: StagedFile, *, create: bool = False) -> bool:
        """Open the bytes of ``staged``, for readers too; False if there are none."""
        was_open = staged.descriptor >= 0
        if staged.open_bytes(create=create) and not was_open:
            self.use_descriptor(os.dup(staged.descriptor))
        return staged.descriptor >= 0

    def use_descriptor(self, descriptor: int) -> None:
        """Let readers read from ``descriptor``; the download closes it."""
        self._close_descriptor()
        self.descriptor = descriptor

    def when_started(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when content has arrived."""
        self._on_started = callback

    def _mark_started(self) -> None:
        if not self.started:
            self.started = True
            self._on_started()
            self._close_sources()

    def _close_sources(self) -> None:
        if self.started and self.detach_point is not None:
            self.sources.close()

    # --- the state that processes share --------------------------------------------------

    def to_state(self, *, is_flowing: bool, size: int | None) -> DownloadState:
        """The state file's content while this process writes."""
        return DownloadState(
            flowing=is_flowing,
            verified=self.verified,
            size=size,
            upstream=self.repository.upstream,
            repository=str(self.repository),
            origin=self.provenance.repository,
            origin_until=self.provenance.until,
        )

    def follow_state(self, state: DownloadState, written: int) -> None:
        """Another process has written ``written`` bytes, and then ``state`` or an older one."""
        self.restore_provenance(state)
        if not self.started:
            self.sources.note_size_of(state.repository)
            self.begin(state.size)
        self.advance(written)

    def restore_provenance(self, state: DownloadState) -> None:
        """Take over the provenance of the bytes that another writer left."""
        self.provenance = Provenance(state.origin, state.origin_until)

    # --- proofs --------------------------------------------------------------------------

    @property
    def proven_for(self) -> Repository | None:
        """The repository whose own upstream has sent every byte so far, if there is one."""
        repository = self.repository
        is_proven = self.provenance.until is None and self.provenance.is_of(repository)
        return repository if is_proven else None

    def is_foreign_to(self, repository: Repository) -> bool:
        """Whether the file has unverified bytes of another upstream."""
        return not self.verified and not self.provenance.is_from(repository.upstream)

    def add_sample(self, repository: Repository, start: int, data: bytes) -> Repository | None:
        """Record that the upstream of ``repository`` has sent ``data``, which is in the file at ``start``.

        Returns the repository whose bytes the sample was compared with; None if that is not known.
        """
        if not self.provenance.is_of(self.repository):
            return None
        self._samples[repository] = (start, data)
        return self.repository

    def is_proven(self, repository: Repository) -> bool:
        """Whether the upstream of ``repository`` has sent a matching sample, or all of the verified bytes."""
        return repository in self._samples or (self.verified and self.proven_for == repository)

    def find_possessors(self) -> set[Repository]:
        """Return the repositories whose upstreams have the blob. The file must be verified."""
        possessors = {
            repository
            for repository, (start, data) in self._samples.items()
            if os.pread(self.descriptor, len(data), start) == data
        }
        return possessors if self.proven_for is None else {*possessors, self.proven_for}

    # --- failures ------------------------------------------------------------------------

    def suspect_provenance(self) -> None:
        """Blame wrong bytes of several upstreams on the first of them, or on nobody if it is not known.

        If nobody is to blame, the readers of each repository request their own upstream again.
        """
        if self.proven_for is None:
            self.sources.blame(self.provenance.repository or NOBODY)

    def fail(self, error: RegistryError, blamed: str = EVERYBODY, *, failure: str = "") -> None:
        """The download has failed; ``blamed`` is the repository whose upstream is at fault, if one is.

        ``failure`` is the text for the log; by default that of ``error``.
        """
        self.error, self._blamed, self.failure = error, blamed, failure or str(error)
        self.notify()

    def blames(self, repository: Repository) -> bool:
        """Whether the failure is a response for readers of ``repository``."""
        return (
            self._blamed in (EVERYBODY, str(repository))
            or self.sources.find_rejection(repository) is not None
        )

    # --- the task ------------------------------------------------------------------------

    @property
    def is_unwanted(self) -> bool:
        """Whether no content has arrived and no reader waits for it."""
        return not self.started and not self._waiting

    def run_by(self, task: asyncio.Task[None]) -> None:
        """``task`` does the work of the download."""
        self._task = task

    def cancel_if_unwanted(self) -> None:
        """Cancel a download that is unwanted, unless a reader has come meanwhile."""
        if self.is_unwanted and self._task is not None:
            self._has_ended = True
            self._task.cancel()

    def end(self) -> None:
        """The work has ended: nobody joins any more, and the last reader closes the file."""
        self._has_ended = True
        self._release()

    def not_cached(self, reason: str) -> None:
        """The blob is not stored, because of ``reason``."""
        self.not_cached_reason = reason

    # --- pass-through --------------------------------------------------------------------

    def detach(self, detach_point: DetachPoint, spare: PassThrough) -> None:
        """The file grows no more; ``spare`` brings the remaining bytes to the first reader that takes it."""
        self.detach_point, self._spare = detach_point, spare
        self._close_sources()
        self.notify()

    def take_spare(self, offset: int) -> PassThrough | None:
        """Return the remaining bytes if they continue at ``offset``; once.

        Otherwise close it: while it waits it occupies a connection that other readers may need.
        """
        spare, self._spare = self._spare, None
        if spare is not None and not spare.reaches(offset):
            spare.close()
            return None
        return spare

    # --- readers -------------------------------------------------------------------------

    @contextmanager
    def reader(self, source: Source | None) -> Iterator[None]:
        """Count one reader while the block runs."""
        self.enter(source)
        try:
            yield
        finally:
            self.leave(source)

    def enter(self, source: Source | None) -> None:
        """Count a reader; ``source`` may be requested for it, if it has one."""
        self.readers += 1
        if source is not None:
            self.sources.enter(source)

    def leave(self, source: Source | None, *, is_past_file: bool = False) -> None:
        """A reader has left; ``is_past_file`` if it called ``pass_file``."""
        self.readers -= 1
        self._past_file -= is_past_file
        if source is not None:
            self.sources.leave(source)
        self._release()

    def pass_file(self) -> None:
        """A reader of a detached download no longer needs the file."""
        self._past_file += 1
        self._release()

    def _release(self) -> None:
        """Close what no reader needs any more."""
        if self.readers == 0 and self._spare is not None:
            self._spare.close()
            self._spare = None
        is_over = self.detach_point is not None or self._has_ended
        if is_over and self.readers == self._past_file:
            self._close_descriptor()

    def _close_descriptor(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def notify(self) -> None:
        """Wake all tasks in ``wait_changed``."""
        changed, self._changed = self._changed, asyncio.get_running_loop().create_future()
        changed.set_result(None)

    async def wait_changed(self) -> None:
        await asyncio.shield(self._changed)

    async def wait_started(self, repository: Repository | None) -> None:
        """Wait until content arrives; raises the RegistryError for readers of ``repository``.

        An empty body has no last byte to withhold: this waits for its verification.
        """
        self._waiting += 1
        try:
            while not self.started or (self.size == 0 and not self.verified):
                error = self.sources.find_rejection(repository) or self.error
                if error is not None:
                    raise error
                await self.wait_changed()
        finally:
            self._waiting -= 1

    async def wait_until_readable(self, offset: int, relying: Repository | None = None) -> int:
        """Wait until bytes after ``offset`` are visible, or until the file grows no more; return the limit.

        ``relying`` is the reader's repository, if the reader may only have bytes of its upstream.
        Raises RegistryError if the bytes will not come.
        """
        while True:
            visible = self.visible if relying is None else self.visible_to(relying)
            if visible > offset or self.detach_point is not None:
                return visible
            if self.verified:
                if visible < self.visible:
                    raise Unavailable(f"the upstream of {relying} did not send the whole blob", retry_after=1)
                return visible
            if self.error is not None:
                raise self.error
            await self.wait_changed()
