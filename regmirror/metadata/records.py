"""Rows of the metadata database as values."""

from __future__ import annotations

from dataclasses import dataclass

from regmirror.oci.names import Digest


@dataclass(frozen=True, slots=True)
class TagRecord:
    """A tag as its upstream reported it at ``checked_at`` (wall-clock seconds).

    ``previous`` is the earlier digest, as long as the manifest of ``digest`` is not stored.
    """

    digest: Digest
    media_type: str
    size: int
    checked_at: float
    previous: Digest | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A candidate for eviction: a stored blob, or a manifest of a repository.

    ``size`` is the number of bytes that its removal frees, which is 0 for a manifest that another
    repository pulled later. ``pulled_at`` is in wall-clock seconds.
    """

    digest: Digest
    size: int
    pulled_at: float
    repository_id: int = 0  # of a manifest; blobs belong to none

    @property
    def place(self) -> tuple[float, str, int]:
        """The sort key of the order of eviction."""
        return self.pulled_at, str(self.digest), self.repository_id
