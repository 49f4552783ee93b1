"""How long a tag may be believed: plain functions of plain values."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regmirror.metadata.records import TagRecord
from regmirror.mirror.freshness import FreshnessPolicy, FreshnessRules, is_fresh, may_serve_stale
from regmirror.oci.names import Digest, Repository, Tag

DIGEST = Digest("sha256:" + "0" * 64)
DEFAULT = FreshnessPolicy(300.0, 86400.0)
DAY = FreshnessPolicy(86400.0, 86400.0)
NEVER = FreshnessPolicy(0.0, 86400.0)


def record(checked_at: Any = 1000.0) -> Any:
    return TagRecord(DIGEST, "application/json", 2, checked_at)


@pytest.mark.parametrize(("age", "expected"), [(0, True), (299.9, True), (300, False), (10_000, False)])
def test_a_tag_is_fresh_until_its_max_age(age: Any, expected: Any) -> None:
    """B24, B25: the border belongs to what is no longer fresh."""
    assert is_fresh(record(), DEFAULT, 1000.0 + age) is expected


def test_a_max_age_of_0_asks_always() -> None:
    """B29: not even at the same moment is a tag believed."""
    assert not is_fresh(record(), NEVER, 1000.0)


def test_a_record_from_the_future_is_not_fresh() -> None:
    """A clock that was set back must not keep a tag for years."""
    assert not is_fresh(record(), DEFAULT, 999.0)
    assert may_serve_stale(record(), DEFAULT, 999.0)


@pytest.mark.parametrize(("age", "expected"), [(0, True), (300 + 86399, True), (300 + 86400, False)])
def test_a_stale_tag_stands_in_for_its_upstream_for_a_while(age: Any, expected: Any) -> None:
    """B33: stale-if-error counts from the end of the max age."""
    assert may_serve_stale(record(), DEFAULT, 1000.0 + age) is expected


def test_without_stale_if_error_nothing_stands_in() -> None:
    assert not may_serve_stale(record(), FreshnessPolicy(300.0, 0.0), 1300.0)


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9), st.floats(0, 1e9), st.floats(-1e9, 1e9))
def test_what_is_fresh_may_also_be_served_while_the_upstream_fails(
    checked: Any, max_age: Any, stale: Any, now: Any
) -> None:
    policy = FreshnessPolicy(max_age, stale)
    if is_fresh(record(checked), policy, now):
        assert may_serve_stale(record(checked), policy, now)


@pytest.mark.parametrize(
    ("upstream", "name", "tag", "expected"),
    [
        ("docker.io", "library/alpine", "3.20.1", DAY),
        ("docker.io", "library/alpine", "latest", DEFAULT),
        ("docker.io", "org/app", "3.20.1", DEFAULT),
        ("ghcr.io", "org/app", "nightly", NEVER),
        ("ghcr.io", "org/app", "1.2.3", DEFAULT),
    ],
)
def test_the_first_rule_that_matches_decides(upstream: Any, name: Any, tag: Any, expected: Any) -> None:
    """B29: rules are patterns over ``upstream/repository:tag``."""
    rules = FreshnessRules(
        DEFAULT,
        (
            ("docker.io/library/*:[0-9]*.[0-9]*.[0-9]*", DAY),
            ("**:nightly", NEVER),
            ("**:nightly", DAY),
        ),
    )

    assert rules.policy(Repository(upstream, name), Tag(tag)) == expected
