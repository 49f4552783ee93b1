"""Negative cache: names that upstreams reported as missing or denied, for a few seconds.

Entries store the class and message of an error and no exception: its traceback would keep the
request alive that met it.
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
DENIED_MAX_AGE: Final = 5.0  # seconds: access may be granted at any time
MESSAGE_MAX: Final = 1_000  # characters of an error message
EXPIRY_INTERVAL: Final = 5.0  # seconds between two searches for expired entries

#: A digest that is no manifest may be a blob, so the error's class is part of the key.
_Key = tuple[Repository, Reference, type[RegistryError]]


@dataclass(frozen=True, slots=True)
class _Entry:
    expires_at: float
    message: str
    cause: type[UpstreamNotFound | UpstreamDenied]


class NegativeCache:
    """Missing names by repository.

    ``max_age`` is in seconds and changes with the configuration; 0 stores nothing. ``clock`` is
    monotonic seconds.
    """

    def __init__(self, max_age: float, clock: Callable[[], float]) -> None:
        self.max_age, self._clock = max_age, clock
        self._entries: Lru[_Key, _Entry] = Lru(NEGATIVE_CACHE_BYTES, _weigh)
        self._expired_at = -math.inf

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def weight(self) -> int:
        """Bytes of all entries."""
        return self._entries.weight

    def check(self, repository: Repository, reference: Reference, unknown: type[RegistryError]) -> None:
        """Raise a new ``unknown`` if the name is cached as missing."""
        entry = self._entries.get((repository, reference, unknown))
        if entry is None:
            return
        if self._clock() < entry.expires_at:
            error = unknown(entry.message)
            error.is_definite = True  # only definite errors are cached
            raise error from entry.cause(repository.upstream, entry.message)
        self.drop(repository, reference, unknown)

    def put(
        self, repository: Repository, reference: Reference, error: RegistryError, *, denied: bool
    ) -> None:
        """Cache class and message of ``error`` for ``max_age``, or less if access was denied."""
        max_age = min(self.max_age, DENIED_MAX_AGE) if denied else self.max_age
        if max_age > 0:
            self._drop_expired()
            cause = UpstreamDenied if denied else UpstreamNotFound
            entry = _Entry(self._clock() + max_age, error.message[:MESSAGE_MAX], cause)
            self._entries.put((repository, reference, type(error)), entry)

    def drop(self, repository: Repository, reference: Reference, unknown: type[RegistryError]) -> None:
        self._entries.drop((repository, reference, unknown))

    def clear(self) -> None:
        self._entries.clear()

    def _drop_expired(self) -> None:
        now = self._clock()
        if now - self._expired_at >= EXPIRY_INTERVAL:
            self._expired_at = now
            self._entries.drop_where(lambda entry: entry.expires_at <= now)


def _weigh(key: _Key, entry: _Entry) -> int:
    repository, reference, _ = key
    return weigh_texts(repository.upstream, repository.name, reference, entry.message)
