"""Links to the next page of a list."""

import pytest
from yarl import URL

from regmirror.upstream.pagination import next_page

TAGS = URL("https://reg.example/v2/a/b/tags/list?n=1000")


@pytest.mark.parametrize(
    "link",
    [
        '</v2/a/b/tags/list?last=x&n=1000>; rel="next"',
        "</v2/a/b/tags/list?last=x&n=1000>;rel=next",
        '<list?last=x&n=1000>; rel="next"',
        '<https://reg.example/v2/a/b/tags/list?last=x&n=1000>; rel="next"',
        '<http://registry.internal:5000/v2/a/b/tags/list?last=x&n=1000>; rel="next"',
        '</v2/a/b/tags/list?n=1>; rel="prev", </v2/a/b/tags/list?last=x&n=1000>; rel="next"',
        '</v2/a/b/tags/list?last=x&n=1000>; title="t"; rel="last next"',
    ],
)
def test_the_next_page_is_found_on_the_same_host(link: str) -> None:
    """B53: relative and absolute links; another host in one is not asked."""
    expected = URL("https://reg.example/v2/a/b/tags/list?last=x&n=1000")
    assert expected == next_page(TAGS, [link])


@pytest.mark.parametrize(
    "links",
    [
        [],
        [""],
        ["nonsense"],
        ['</v2/a/b/tags/list?last=x>; rel="prev"'],
        ['</v2/a/b/tags/list?last=x>; rel="nextish"'],
        ['</v2/secret/tags/list?last=x>; rel="next"'],
        ['</v2/a/b/tags/list>; rel="next"'],
        ['<http://[/x>; rel="next"'],
        ['</v2/a/b/tags/list?last=x y>; rel="next"'],
    ],
)
def test_everything_else_ends_the_list(links: list[str]) -> None:
    """B53: a link cannot lead out of the list."""
    assert next_page(TAGS, links) is None


def test_the_bytes_of_a_link_are_kept() -> None:
    link = '</v2/a/b/tags/list?last=a%2Bb+c%7E&n=10>; rel="next"'
    assert str(next_page(TAGS, [link])).endswith("?last=a%2Bb+c%7E&n=10")
