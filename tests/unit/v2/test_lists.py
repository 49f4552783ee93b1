"""Lists in pages: the number of entries and the link to the next page."""

import pytest
from aiohttp.test_utils import make_mocked_request

from regmirror.errors import PaginationInvalid
from regmirror.v2.lists import PAGE_MAX, _limit, _link


@pytest.mark.parametrize(
    ("query", "expected"), [("", None), ("?n=0", 0), ("?n=5", 5), ("?n=99999999", PAGE_MAX)]
)
def test_the_limit_is_a_number_of_entries(query: str, expected: int | None) -> None:
    assert _limit(make_mocked_request("GET", f"/v2/a/tags/list{query}")) == expected


@pytest.mark.parametrize("text", ["", "-1", "x", "1.5", "٣", "1" * 19])
def test_another_limit_is_rejected(text: str) -> None:
    with pytest.raises(PaginationInvalid, match="n must be"):
        _limit(make_mocked_request("GET", f"/v2/a/tags/list?n={text}"))


def test_the_last_page_has_no_link() -> None:
    assert _link(make_mocked_request("GET", "/v2/a/tags/list?n=5"), None, 5) == {}


@pytest.mark.parametrize(
    ("query", "limit", "expected"),
    [
        ("", None, "last=b%2Fc"),
        ("?n=2", 2, "last=b%2Fc&n=2"),
        ("?ns=ghcr.io&ns=other", 2, "last=b%2Fc&n=2&ns=ghcr.io"),
    ],
)
def test_a_link_repeats_limit_and_namespace(query: str, limit: int | None, expected: str) -> None:
    request = make_mocked_request("GET", f"/v2/a/tags/list{query}")
    assert _link(request, "b/c", limit) == {"Link": f'</v2/a/tags/list?{expected}>; rel="next"'}
