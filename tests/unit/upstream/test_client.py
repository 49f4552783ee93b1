"""The client of one upstream, before it has made any request."""

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from regmirror.config.schema import Upstream
from regmirror.errors import ConfigError, UpstreamContentInvalid, UpstreamUnreachable
from regmirror.oci.names import Digest, Repository, Tag
from regmirror.upstream.client import UpstreamClient


def make(**options: str) -> UpstreamClient:
    return UpstreamClient("reg.test", Upstream(**options), emit=lambda event: None, offline=True)


async def test_a_client_is_made_without_a_connection_and_shows_its_url() -> None:
    client = make(url="https://reg.test:5000")
    assert repr(client) == "UpstreamClient('reg.test', 'https://reg.test:5000')"
    assert client.health.find_unavailability("manifests") is None
    await client.close()


def test_a_certificate_that_cannot_be_read_is_a_configuration_error() -> None:
    """B80."""
    with pytest.raises(ConfigError) as caught:
        make(ca_file="/nowhere/ca.pem")
    assert caught.value.key == 'upstreams."reg.test".ca_file'


async def test_offline_every_request_is_an_error_that_names_the_key() -> None:
    """B37."""
    client = make()
    with pytest.raises(UpstreamUnreachable, match=r"freshness\.offline"):
        await client.get_manifest(Repository("reg.test", "a"), Tag("1"))
    await client.close()


async def test_a_head_for_a_digest_must_not_state_another_one() -> None:
    """B10."""

    async def respond(request: web.Request) -> web.Response:
        return web.Response(headers={"Docker-Content-Digest": Digest.of(b"another")})

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", respond)
    async with TestServer(app) as server:
        config = Upstream(url=str(server.make_url("/")).rstrip("/"))
        client = UpstreamClient("reg.test", config, emit=lambda event: None)
        with pytest.raises(UpstreamContentInvalid, match="another digest"):
            await client.head_manifest(Repository("reg.test", "a"), Digest.of(b"one"))
        await client.close()
