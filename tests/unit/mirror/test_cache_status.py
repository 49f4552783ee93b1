"""Cache statuses: headers in the syntax of RFC 9211, and labels that the metrics know."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from regmirror.mirror import cache_status
from regmirror.mirror.cache_status import CachedResult, CacheStatus
from regmirror.telemetry.events import Result

STATUSES = [value for value in vars(cache_status).values() if isinstance(value, CacheStatus)]
PARAMETER = r"hit|collapsed|stored|fwd=(miss|stale)|fwd-status=\d{3}|detail=[a-z]+"


@pytest.mark.parametrize("status", STATUSES, ids=lambda status: status.header)
def test_a_header_names_the_cache_and_its_parameters(status: CacheStatus) -> None:
    assert re.fullmatch(rf"regmirror(; ({PARAMETER}))+", status.header)
    assert status.result in get_args(Result)


@pytest.mark.parametrize("status", STATUSES, ids=lambda status: status.header)
def test_a_response_is_either_a_hit_or_forwarded(status: CacheStatus) -> None:
    """RFC 9211, section 2.2: ``hit`` and ``fwd`` exclude each other, and so do ``hit`` and ``stored``."""
    assert ("; hit" in status.header) != ("; fwd=" in status.header)
    assert not ("; hit" in status.header and "; stored" in status.header)


def test_statuses_differ_and_a_result_has_no_warning_by_default() -> None:
    assert len({status.header for status in STATUSES}) == len(STATUSES) == 7
    assert CachedResult(1, cache_status.HIT).warning == ""
