"""Rows of the metadata database as values."""

from __future__ import annotations

from dataclasses import dataclass

from regmirror.oci.names import Digest


@dataclass(frozen=True, slots=True)
class TagRecord:
    """What a tag meant when the upstream was last asked, at ``checked_at``.

    ``previous`` is what it meant before, while the manifest of ``digest`` is not stored.
    """

    digest: Digest
    media_type: str
    size: int
    checked_at: float
    previous: Digest | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A stored blob, or a manifest of a repository, last pulled at ``pulled_at`` (wall-clock seconds).

    ``size`` is what its removal frees: 0 for a manifest that another repository needs longer.
    """

    digest: Digest
    size: int
    pulled_at: float
    repository_id: int = 0  # of a manifest; blobs belong to none

    @property
    def place(self) -> tuple[float, str, int]:
        """In the order of eviction."""
        return self.pulled_at, str(self.digest), self.repository_id
