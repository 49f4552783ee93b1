"""How long a tag may be served without revalidation, in the terms of RFC 9111 and RFC 5861.

Times are wall-clock seconds, because they are compared with times that the database keeps across
restarts. Digests are immutable and need none of this.
"""

from __future__ import annotations

from dataclasses import dataclass

from regmirror.config.schema import Freshness
from regmirror.metadata.records import TagRecord
from regmirror.oci.globs import matches
from regmirror.oci.names import Repository, Tag


@dataclass(frozen=True, slots=True)
class FreshnessPolicy:
    """Seconds that a tag is fresh, and seconds after that in which it may be served stale."""

    max_age: float
    stale_if_error: float


@dataclass(frozen=True, slots=True)
class FreshnessRules:
    """The policy of every tag: that of the first rule whose pattern matches, else ``default``."""

    default: FreshnessPolicy
    rules: tuple[tuple[str, FreshnessPolicy], ...] = ()

    @classmethod
    def of(cls, config: Freshness) -> FreshnessRules:
        """The rules of a configuration."""
        return cls(
            FreshnessPolicy(config.tag_max_age, config.stale_if_error),
            tuple(
                (rule.match, FreshnessPolicy(rule.tag_max_age, config.stale_if_error))
                for rule in config.rules
            ),
        )

    def policy(self, repository: Repository, tag: Tag) -> FreshnessPolicy:
        """The policy of one tag. Patterns match ``upstream/repository:tag``."""
        if self.rules:
            name = f"{repository}:{tag}"
            for pattern, policy in self.rules:
                if matches(pattern, name):
                    return policy
        return self.default


def is_fresh(record: TagRecord, policy: FreshnessPolicy, now: float) -> bool:
    """Whether the record may be served without an upstream request.

    A record from the future (the clock was set back) is not fresh; revalidation corrects its time.
    """
    return 0 <= now - record.checked_at < policy.max_age


def may_serve_stale(record: TagRecord, policy: FreshnessPolicy, now: float) -> bool:
    """Whether the record may be served while its upstream fails."""
    return now - record.checked_at < policy.max_age + policy.stale_if_error
