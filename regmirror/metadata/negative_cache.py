"""Names that upstreams have just refused: text and class of the error, for a few seconds.

No exception is kept. Its traceback holds the frames of the request that met it, and with them the
request itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from regmirror.errors import RegistryError, UpstreamDenied, UpstreamNotFound
from regmirror.lru import Lru, weigh_texts
from regmirror.oci.names import Reference, Repository

NEGATIVE_CACHE_BYTES: Final = 4 * 1024 * 1024
MESSAGE_MAX: Final = 1_000  # characters of an error that are kept
SWEEP: Final = 5.0  # seconds between two looks for expired entries

#: A digest may be no manifest and yet a blob, so the error that it was asked for as is part of the key.
_Key = tuple[Repository, Reference, type[RegistryError]]


@dataclass(frozen=True, slots=True)
class _Absence:
    until: float
    message: str
    cause: type[UpstreamNotFound | UpstreamDenied]


class NegativeCache:
    """Absent names by repository; ``clock`` is monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._entries: Lru[_Key, _Absence] = Lru(NEGATIVE_CACHE_BYTES, _weigh)
        self._swept_at = -math.inf

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def weight(self) -> int:
        """Bytes of all entries."""
        return self._entries.weight

    def check(self, repository: Repository, reference: Reference, unknown: type[RegistryError]) -> None:
        """Raise a new ``unknown`` if the name was noted as absent and that has not expired."""
        found = self._entries.get((repository, reference, unknown))
        if found is None:
            return
        if self._clock() < found.until:
            error = unknown(found.message)
            error.is_definite = True  # else it would not have been noted
            raise error from found.cause(repository.upstream, found.message)
        self.drop(repository, reference, unknown)

    def note(
        self,
        repository: Repository,
        reference: Reference,
        error: RegistryError,
        *,
        denied: bool,
        max_age: float,
    ) -> None:
        """Keep class and text of ``error`` for ``max_age`` seconds."""
        self.sweep()
        cause = UpstreamDenied if denied else UpstreamNotFound
        absence = _Absence(self._clock() + max_age, error.message[:MESSAGE_MAX], cause)
        self._entries.put((repository, reference, type(error)), absence)

    def drop(self, repository: Repository, reference: Reference, unknown: type[RegistryError]) -> None:
        self._entries.drop((repository, reference, unknown))

    def sweep(self) -> None:
        """Drop the expired entries, unless that was done a moment ago."""
        now = self._clock()
        if now - self._swept_at >= SWEEP:
            self._swept_at = now
            self._entries.drop_where(lambda absence: absence.until <= now)

    def clear(self) -> None:
        self._entries.clear()


def _weigh(key: _Key, absence: _Absence) -> int:
    repository, reference, _ = key
    return weigh_texts(repository.upstream, repository.name, reference, absence.message)
