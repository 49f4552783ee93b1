"""The context of a client request becomes one event."""

import re

from aiohttp.test_utils import make_mocked_request

from regmirror.mirror.cache_status import HIT
from regmirror.v2.request import UNKNOWN_UPSTREAM, RequestContext, new_request_id


def test_a_request_id_is_sixteen_hexadecimal_digits() -> None:
    ids = {new_request_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch(r"[0-9a-f]{16}", name) for name in ids)


def test_a_request_that_was_not_recorded_is_an_error() -> None:
    event = RequestContext(make_mocked_request("GET", "/v2/x?a=secret")).event()
    assert (event.method, event.path, event.upstream) == ("GET", "/v2/x", UNKNOWN_UPSTREAM)
    assert (event.result, event.cache_status, event.kind) == ("error", "", "")
    assert event.first_byte == event.seconds


def test_a_recorded_result_is_in_the_event() -> None:
    context = RequestContext(make_mocked_request("GET", "/v2/"))
    context.record(HIT)
    event = context.event()
    assert (event.result, event.cache_status) == ("hit", "regmirror; hit")
    assert 0 <= event.first_byte <= event.seconds


def test_the_id_of_the_client_is_used_and_cut() -> None:
    request = make_mocked_request("GET", "/v2/", {"X-Request-Id": "a" * 100})
    assert RequestContext(request).event().request_id == "a" * 64
