"""Tags and referrers of an upstream, page by page (B53, B54)."""

from contextlib import asynccontextmanager
from typing import Any

import pytest

from regmirror.errors import UpstreamContentInvalid, UpstreamFailed, UpstreamNotFound
from regmirror.oci.manifests import OCI_INDEX
from regmirror.oci.names import Digest
from regmirror.upstream.pagination import LIST_MAX, LISTS_MAX
from tests.fake_registry import FakeRegistry, Html, Redirect, SetHeaders, Status
from tests.fake_registry.faults import Action
from tests.fake_registry.sources import InMemory
from tests.integration.asking import ALPINE, asking, saying, speaking


@pytest.fixture
def image(upstream: Any) -> Any:
    return upstream.add_image("library/alpine", "latest")


@pytest.fixture
async def client(upstream: Any) -> Any:
    async with asking(upstream.url) as client:
        yield client


@asynccontextmanager
async def answering(body: Any, content_type: Any) -> Any:
    """A client of an upstream that answers everything with one body."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nConnection: close\r\n"
    response = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    async with speaking(saying(response)) as host, asking(f"http://{host}") as client:
        yield client


async def test_tags_are_read_page_by_page(client: Any, upstream: Any, image: Any) -> None:
    """B53."""
    names = [f"v{number:04}" for number in range(25)]
    for name in names:
        upstream.move_tag("library/alpine", name, image.digest)
    upstream.page_size = 10
    assert await client.list_tags(ALPINE) == ["latest", *names]
    assert len(upstream.requests) == 3
    assert upstream.requests[0].query["n"] == "1000"


@pytest.mark.parametrize(
    "link",
    [
        "</v2/library/alpine/tags/list?n=1000>",
        "</v2/library/alpine/tags/list?n=1000>; rel=prev",
        "<http://127.0.0.1:1/v2/other/tags/list?n=1000>; rel=next",
    ],
)
async def test_links_that_lead_nowhere_end_the_list(
    client: Any, upstream: Any, image: Any, link: str
) -> None:
    """B53."""
    upstream.fault(SetHeaders({"Link": link}), times=None)
    assert await client.list_tags(ALPINE) == ["latest"]
    assert len(upstream.requests) == 1


async def test_a_list_that_loops_ends(client: Any, upstream: Any, image: Any) -> None:
    """B53."""
    link = '</v2/library/alpine/tags/list?last=x>; rel="next"'
    upstream.fault(SetHeaders({"Link": link}), times=None)
    assert await client.list_tags(ALPINE) == ["latest"]
    assert len(upstream.requests) == 2


async def test_an_absolute_link_does_not_lead_to_another_host(client: Any, upstream: Any, image: Any) -> None:
    """B53: an internal name of the upstream; its path counts."""
    async with FakeRegistry() as other:
        link = f'<{other.url}/v2/library/alpine/tags/list?last=a>; rel="next"'
        upstream.fault(SetHeaders({"Link": link}), times=1)
        assert await client.list_tags(ALPINE) == ["latest"]
        assert other.requests == []
    assert len(upstream.requests) == 2


@pytest.mark.parametrize(
    ("body", "expected"),
    [(b'{"tags":["a",7,null,"b","a"]}', ["a", "b"]), (b'{"tags":null}', []), (b"{}", [])],
)
async def test_odd_lists_are_read_as_far_as_they_can_be(body: bytes, expected: list[str]) -> None:
    async with answering(body, "application/json") as client:
        assert expected == await client.list_tags(ALPINE)


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"[]", "application/json"), (b"{", "application/json"), (b"<p>", "text/html; charset=x")],
)
async def test_what_is_no_list_is_a_lie(body: bytes, kind: str) -> None:
    """B10."""
    async with answering(body, kind) as client:
        with pytest.raises(UpstreamContentInvalid):
            await client.list_tags(ALPINE)


async def test_the_tags_of_an_unknown_repository_are_not_found(client: Any) -> None:
    with pytest.raises(UpstreamNotFound):
        await client.list_tags(ALPINE)


async def test_referrers_are_listed(client: Any, upstream: Any, image: Any) -> None:
    """B54."""
    referrer = upstream.add_referrer("library/alpine", image.digest, "application/x.sbom")
    (descriptor,) = await client.list_referrers(ALPINE, Digest(image.digest))
    assert descriptor["digest"] == referrer
    assert descriptor["artifactType"] == "application/x.sbom"


async def test_no_referrers_is_another_thing_than_no_api(client: Any, upstream: Any, image: Any) -> None:
    """B54."""
    assert await client.list_referrers(ALPINE, Digest(image.digest)) == []
    upstream.has_referrers = False
    assert await client.list_referrers(ALPINE, Digest(image.digest)) is None


@pytest.mark.parametrize(
    "action",
    [
        Status(400),
        Status(404),
        Status(405),
        Status(406),
        Status(501),
        Redirect("https://github.com/", 303),
        Html(),
        SetHeaders({"Content-Type": "application/json"}),
    ],
)
async def test_an_upstream_without_the_referrers_api_is_recognised(
    client: Any, upstream: Any, image: Any, action: Any
) -> None:
    """B54: the redirect of ghcr.io is not followed."""
    upstream.fault(action, times=None)
    assert await client.list_referrers(ALPINE, Digest(image.digest)) is None


@pytest.mark.parametrize("status", [500, 503])
async def test_a_failing_referrers_api_is_a_failure(
    client: Any, upstream: Any, image: Any, status: int
) -> None:
    upstream.fault(Status(status), times=None)
    with pytest.raises(UpstreamFailed):
        await client.list_referrers(ALPINE, Digest(image.digest))


@pytest.mark.parametrize("value", ["5", "null", '"latest"', "{}"])
async def test_a_list_that_is_none_is_empty(value: str) -> None:
    """B53, B54: whatever an upstream puts where the list should be."""
    async with answering(f'{{"tags": {value}}}'.encode(), "application/json") as client:
        assert await client.list_tags(ALPINE) == []
    async with answering(f'{{"manifests": {value}}}'.encode(), OCI_INDEX) as client:
        assert await client.list_referrers(ALPINE, Digest("sha256:" + "0" * 64)) == []


class EndlessPages(Action):
    """Page after page of this size, each with a link to another one."""

    def __init__(self, size: Any) -> None:
        self.size, self.sent = size, 0

    def change(self, response: Any, request: Any) -> None:
        self.sent += 1
        response.status = 200
        response.headers["Content-Type"] = "application/json"
        response.headers["Link"] = f'<{request.path}?n=1000&last={self.sent}>; rel="next"'
        response.replace_body(InMemory(b'{"tags":["%s"]}' % (b"x" * self.size)))


async def test_a_list_has_no_more_bytes_than_memory_is_for_it(client: Any, upstream: Any, image: Any) -> None:
    """B100: all its pages together."""
    pages = EndlessPages(LIST_MAX // 4)
    upstream.fault(pages, times=None)
    with pytest.raises(UpstreamFailed) as caught:
        await client.list_tags(ALPINE)
    assert caught.value.reason == "too-large"
    assert upstream.count("tags") == pages.sent == 4


async def test_all_lists_together_have_no_more_bytes_than_memory_is_for_them(
    client: Any, upstream: Any, image: Any
) -> None:
    """B100: of one upstream, that are asked for at the same time."""
    upstream.fault(EndlessPages(LIST_MAX // 2), times=1)
    client._lists.total = LISTS_MAX - LIST_MAX // 4
    with pytest.raises(UpstreamFailed) as caught:
        await client.list_tags(ALPINE)
    assert caught.value.reason == "too-large"
    assert client._lists.total == LISTS_MAX - LIST_MAX // 4
