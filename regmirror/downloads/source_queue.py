"""The sources of one download: which one is current, which follow, and which have failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from regmirror.downloads.source import Source
from regmirror.errors import RegistryError
from regmirror.oci.names import Repository

NOBODY: Final = "?"  # to blame when it is not known whose upstream is at fault


class SourceQueue:
    """The sources that the readers of one download offer. ``notify`` is called after a change.

    Each repository is requested from its own upstream, once, and once more after ``put_back``.
    When an upstream rejects the request, only the readers of its repository fail.
    """

    def __init__(self, source: Source, notify: Callable[[], None]) -> None:
        self.current = source  # of the upstream that sends the bytes, or is requested first
        self.resumed = 0  # requests, and writers, that continued from earlier bytes
        self._notify = notify
        self._users: Counter[Repository] = Counter()  # readers of each repository
        self._offered = {source.repository}
        self._untried: list[Source] = []
        self._put_back: set[Repository] = set()
        self._rejections: dict[str, RegistryError] = {}  # by repository
        self._size_stated_by = ""  # the repository whose upstream stated the size
        self._suspect = ""  # the repository to blame for wrong content; the current one if empty
        self._is_closed = False

    @property
    def untried(self) -> list[Source]:
        """The sources of which none has been requested yet, the preferred one first."""
        return [self.current, *self._untried]

    def enter(self, source: Source) -> None:
        """A reader requests the blob for the repository of ``source``."""
        repository = source.repository
        self._users[repository] += 1
        if repository not in self._offered:
            self._offered.add(repository)
            self._untried.append(source)
            self._notify()

    def leave(self, source: Source) -> None:
        """Such a reader has left; a repository without readers is forgotten."""
        repository = source.repository
        self._users[repository] -= 1
        if self._users[repository] > 0:
            return
        del self._users[repository]
        if repository != self.current.repository:
            self._offered.discard(repository)
            self._untried = [other for other in self._untried if other.repository != repository]
            self._put_back.discard(repository)
            self._rejections.pop(str(repository), None)

    def prefer(self, source: Source) -> None:
        """Start with ``source``, one of ``untried``."""
        if source is not self.current:
            self._untried.remove(source)
            self._untried.insert(0, self.current)
            self.current = source

    def take_other(self) -> Source | None:
        """Return the next source to request; None if there is none, and after ``close``."""
        return self._untried.pop(0) if self._untried and not self._is_closed else None

    def close(self) -> None:
        """Request no other source: readers rely on bytes of the current one that are not stored."""
        self._is_closed = True

    def put_back(self, source: Source) -> None:
        """``source`` was given up while it was slow: it may be requested once more."""
        if source.is_upstream and source.repository not in self._put_back:
            self._put_back.add(source.repository)
            self._untried.append(source)

    def note_resumed(self) -> None:
        self.resumed += 1

    def note_response(self, source: Source, *, states_size: bool) -> None:
        """``source`` has responded; ``states_size`` if its size is the first one, or another one."""
        if source.is_upstream:
            self.current = source
        if states_size:
            self.note_size_of(str(source.repository) if source.is_upstream else NOBODY)

    def note_size_of(self, repository: str) -> None:
        """The upstream of ``repository`` has stated the size."""
        self._size_stated_by = repository

    # --- failures ------------------------------------------------------------------------

    @property
    def suspected(self) -> str:
        """The repository whose upstream is to blame for a failure; NOBODY if that is not known."""
        return self._suspect or str(self.current.repository)

    def blame(self, repository: str) -> None:
        """The upstream of ``repository`` has sent wrong content."""
        self._suspect = repository

    def suspect(self, source: Source) -> None:
        """Blame a size that does not fit on the upstream that stated a size first."""
        self._suspect = self._size_stated_by or (str(source.repository) if source.is_upstream else NOBODY)

    def reject(self, source: Source, error: RegistryError) -> None:
        """``source`` does not send the blob: the readers of its repository fail with ``error``."""
        if source.is_upstream:
            self._rejections[str(source.repository)] = error
            self._notify()

    def reject_of(self, repository: str, error: RegistryError) -> None:
        """In another process, the upstream of ``repository`` failed: the next source becomes current.

        Raises ``error`` if the current source was the last one.
        """
        if repository:
            self._rejections[repository] = error
            self._notify()
        if repository == str(self.current.repository):
            other = self.take_other()
            if other is None:
                raise error
            self.current = other

    def find_rejection(self, repository: Repository | None) -> RegistryError | None:
        """Return the error for readers of ``repository``, if its upstream rejected the request."""
        return self._rejections.get(str(repository))
