"""Provenance: which repository's upstream sent the bytes of a download."""

from __future__ import annotations

from dataclasses import dataclass, replace

from regmirror.oci.names import Repository


@dataclass(frozen=True, slots=True)
class Provenance:
    """The upstream of ``repository`` sent the first ``until`` bytes, or all of them if that is None.

    ``repository`` is empty when the sender is unknown. Only a provenance of all bytes is a proof.
    """

    repository: str = ""
    until: int | None = None

    def is_of(self, repository: Repository) -> bool:
        """Whether the first bytes came from the upstream of ``repository``."""
        return bool(self.repository) and self.repository == str(repository)

    def is_from(self, upstream: str) -> bool:
        """Whether all bytes came through one repository of ``upstream``."""
        return self.until is None and self.repository.startswith(f"{upstream}/")

    def continued_by(self, sender: str, offset: int) -> Provenance:
        """Return the provenance when ``sender`` sends the bytes from ``offset`` on; empty: unknown."""
        if offset == 0:
            return Provenance(sender)
        if self.until is not None or (self.repository and self.repository == sender):
            return self
        return replace(self, until=offset)
