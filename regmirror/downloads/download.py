"""One blob in flight as its readers see it: a growing file and what is known of it."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from typing import Final

from regmirror.downloads.fetcher import Source
from regmirror.downloads.passthrough import DetachPoint, PassThrough
from regmirror.downloads.provenance import Provenance
from regmirror.errors import RegistryError, Unavailable
from regmirror.oci.names import Digest, Repository

EVERYBODY: Final = ""  # to blame for what is no repository's fault
NOBODY: Final = "?"  # to blame where it is not known which repository's upstream is the reason
OWN_MIN: Final = 64 * 1024  # right bytes from a repository's own upstream that stand for the rest


class Download:
    """One blob in flight, as its readers see it.

    Several repositories may want it, each from its own upstream under its own name. What one of
    them is refused is no response for the others.
    """

    def __init__(self, digest: Digest, source: Source) -> None:
        self.digest = digest
        self.source = source  # the one that is fetched from, or will be first
        self.began = asyncio.get_running_loop().time()
        self.size: int | None = None
        self.started = False  # an upstream has answered with content
        self.written = 0  # bytes in the file, by whichever process
        self.verified = False
        self.origin = Provenance()
        self.error: RegistryError | None = None
        self.is_over = False
        self.task: asyncio.Task[None] | None = None
        self.size_told_by = ""  # the repository whose upstream told the size first
        self.suspect = ""  # the repository to blame for what goes wrong; that of ``source`` if empty
        self.descriptor = -1
        self.readers = 0
        self.waiting = 0  # of the readers: those that have no response yet
        self.resumed = 0
        self._users: Counter[Repository] = Counter()  # readers of each repository
        self._sources = {source.repository: source}  # every one that was offered by a reader
        self._others: list[Source] = []  # of those, what may still be requested from
        self._put_back: set[Repository] = set()
        self._refusals: dict[str, RegistryError] = {}  # by repository
        self._blamed = EVERYBODY
        self.samples: dict[Repository, tuple[int, bytes]] = {}  # what their upstreams sent of it
        self.not_cached_reason = ""  # why the blob is not stored although it could be had
        self.detach_point: DetachPoint | None = None  # the file ends here; the rest passes through memory
        self.spare: PassThrough | None = None  # what the parted download still brings: for one reader
        self.past = 0  # readers that need the file no more
        self._changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def upstream(self) -> str:
        """The name of the upstream that is fetched from."""
        return self.source.repository.upstream

    @property
    def is_open(self) -> bool:
        """Whether a further reader may join."""
        return self.error is None and self.detach_point is None and not self.is_over

    @property
    def visible(self) -> int:
        """Bytes of the file that readers may have: all but the last until the digest is verified."""
        if self.detach_point is not None:
            return self.detach_point.start
        if self.verified:
            return self.written
        limit = self.written if self.size is None else min(self.written, self.size)
        whole = self.size is None or limit == self.size
        return max(0, limit - 1) if whole else limit

    def visible_to(self, repository: Repository) -> int:
        """Bytes for a reader whose only right is that its own upstream brings them.

        When another upstream goes on, the reader gets the rest only after the digest has shown that
        its own upstream brought the right bytes, and enough of them.
        """
        if not self.origin.is_of(repository):
            return 0
        until = self.origin.until
        if until is None or (self.verified and until >= OWN_MIN):
            return self.visible
        return min(until, self.visible)

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

    def use_descriptor(self, descriptor: int) -> None:
        """Have readers read from ``descriptor``, which is closed with the download."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = descriptor

    # --- the repositories that want it ---

    def offer(self, source: Source) -> None:
        """Somebody wants the blob from ``source``, which may be of another repository."""
        if source.repository not in self._sources:
            self._sources[source.repository] = source
            self._others.append(source)
            self.change()

    def enter(self, source: Source) -> None:
        """A reader wants the blob, if need be from ``source``."""
        self._users[source.repository] += 1
        self.offer(source)

    def withdraw(self, source: Source) -> None:
        """A reader has left; nothing is kept of a repository that has no more of them."""
        repository = source.repository
        self._users[repository] -= 1
        if self._users[repository] > 0:
            return
        del self._users[repository]
        if repository != self.source.repository:
            self._sources.pop(repository, None)
            self._others = [other for other in self._others if other.repository != repository]
            self._put_back.discard(repository)
            self._refusals.pop(str(repository), None)

    @property
    def sources(self) -> list[Source]:
        """What nothing has been requested from yet, first the one whose turn it is."""
        return [self.source, *self._others]

    def take_other(self) -> Source | None:
        """The next source to request from; each repository's once."""
        return self._others.pop(0) if self._others else None

    def put_back(self, source: Source) -> None:
        """``source`` was given up while it was slow: it may be requested from once more."""
        if source.repository not in self._put_back:
            self._put_back.add(source.repository)
            self._others.append(source)

    def turn_to(self, source: Source) -> None:
        """Begin with ``source``, which was among ``sources``."""
        if source is not self.source:
            self._others.remove(source)
            self._others.insert(0, self.source)
            self.source = source

    def refuse(self, repository: str, error: RegistryError) -> None:
        """The upstream of ``repository`` does not give it: only its own readers hear of that."""
        self._refusals[repository] = error
        self.change()

    def is_refused(self, source: Source) -> bool:
        return str(source.repository) in self._refusals

    @property
    def proven_for(self) -> Repository | None:
        """The repository whose own upstream has brought every byte, if one has."""
        repository = self.source.repository
        is_proven = self.origin.until is None and self.origin.is_of(repository)
        return repository if is_proven else None

    def is_foreign_to(self, repository: Repository) -> bool:
        """Whether unverified bytes of another upstream are in the file."""
        return not self.verified and not self.origin.is_from(repository.upstream)

    def find_possessors(self) -> set[Repository]:
        """That one, and those whose upstreams sent a part that is as in the file now: to be called when
        the file is verified.
        """
        found = {
            repository
            for repository, (start, data) in self.samples.items()
            if os.pread(self.descriptor, len(data), start) == data
        }
        return found if self.proven_for is None else {*found, self.proven_for}

    def suspect_origin(self) -> None:
        """Where several upstreams brought wrong bytes, the first of them is to blame; nobody, if it
        is not known: then each repository's own upstream is requested from again.
        """
        if self.proven_for is None:
            self.suspect = self.origin.repository or NOBODY

    def fail(self, error: RegistryError, blamed: str = EVERYBODY) -> None:
        """``blamed`` is the repository whose upstream is the reason, if it is one's."""
        self.error, self._blamed = error, blamed
        self.change()

    def blames(self, repository: Repository) -> bool:
        """Whether what went wrong is an answer for readers of ``repository``."""
        return self._blamed in (EVERYBODY, str(repository)) or str(repository) in self._refusals

    # --- what is not kept ---

    def part(self, detach_point: DetachPoint, spare: PassThrough) -> None:
        """The file grows no more; ``spare`` brings the rest for the first who needs it."""
        self.detach_point, self.spare = detach_point, spare
        self.change()

    def take_spare(self, offset: int) -> PassThrough | None:
        """What the download still brings, if it comes from ``offset``; else it is given up.

        Kept waiting it would hold a connection that other readers may be waiting for.
        """
        spare, self.spare = self.spare, None
        if spare is not None and not spare.reaches(offset):
            spare.close()
            return None
        return spare

    # --- waiting ---

    def change(self) -> None:
        """Wake whoever waits."""
        changed, self._changed = self._changed, asyncio.get_running_loop().create_future()
        changed.set_result(None)

    async def wait_changed(self) -> None:
        await asyncio.shield(self._changed)

    async def wait_started(self, repository: Repository) -> None:
        """Until the upstream's headers are here; raises what went wrong instead.

        An empty body has no last byte to hold back, so that there the verdict is waited for.
        """
        while not self.started or (self.size == 0 and not self.verified):
            refusal = self._refusals.get(str(repository), self.error)
            if refusal is not None:
                raise refusal
            await self.wait_changed()

    async def wait_until_readable(self, offset: int, relying: Repository | None = None) -> int:
        """See ``blobs.base.Blob``; returns as well when the file grows no more.

        ``relying`` is the reader's repository, if it may have only what its own upstream brings.
        """
        while True:
            visible = self.visible if relying is None else self.visible_to(relying)
            if visible > offset or self.detach_point is not None:
                return visible
            if self.verified:
                if visible < self.visible:
                    raise Unavailable(f"the rest does not come from {relying}", retry_after=1)
                return visible
            if self.error is not None:
                raise self.error
            await self.wait_changed()
