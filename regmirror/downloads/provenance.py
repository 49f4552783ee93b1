"""Whose upstream brought the bytes of a blob: what proves the right of a repository to it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from regmirror.oci.names import Repository


@dataclass(frozen=True, slots=True)
class Provenance:
    """Whose upstream brought the bytes: that of ``repository`` the first ``until``, or all of them."""

    repository: str = ""
    until: int | None = None

    def is_of(self, repository: Repository) -> bool:
        return bool(self.repository) and self.repository == str(repository)

    def is_from(self, upstream: str) -> bool:
        """Whether one repository of that upstream has brought all of them."""
        return self.until is None and self.repository.startswith(f"{upstream}/")

    def continued_by(self, repository: Repository, offset: int) -> Provenance:
        """``repository`` brings what comes from ``offset`` on."""
        if offset == 0:
            return Provenance(str(repository))
        if self.is_of(repository) or self.until is not None:
            return self
        return replace(self, until=offset)
