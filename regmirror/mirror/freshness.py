"""How long a tag may be believed, in HTTP's words (RFC 9111): fresh, stale, stale-if-error.

Times are wall-clock seconds, since they are compared with what the database kept over a
restart; digests never come here, they are true for ever.
"""

from __future__ import annotations

from dataclasses import dataclass

from regmirror.metadata.records import TagRecord
from regmirror.oci.globs import matches
from regmirror.oci.names import Repository, Tag


@dataclass(frozen=True, slots=True)
class FreshnessPolicy:
    """Seconds a tag is fresh, and how long after that it may still stand in for an upstream."""

    max_age: float
    stale_if_error: float


@dataclass(frozen=True, slots=True)
class FreshnessRules:
    """The policy for every tag: the first rule whose pattern matches, else the defaults."""

    default: FreshnessPolicy
    rules: tuple[tuple[str, FreshnessPolicy], ...] = ()

    def policy(self, repository: Repository, tag: Tag) -> FreshnessPolicy:
        """Rules are patterns over ``upstream/repository:tag``."""
        if self.rules:
            name = f"{repository}:{tag}"
            for pattern, policy in self.rules:
                if matches(pattern, name):
                    return policy
        return self.default


def is_fresh(record: TagRecord, policy: FreshnessPolicy, now: float) -> bool:
    """Whether the record may be answered without asking upstream.

    A record from the future (the clock was set back) is not fresh: asking once mends it.
    """
    return 0 <= now - record.checked_at < policy.max_age


def may_serve_stale(record: TagRecord, policy: FreshnessPolicy, now: float) -> bool:
    """Whether the record may stand in while its upstream fails."""
    return now - record.checked_at < policy.max_age + policy.stale_if_error
