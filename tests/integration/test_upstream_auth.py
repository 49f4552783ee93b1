"""Tokens and passwords against a registry that insists on them (B14, B26, B27, B60 to B62)."""

import asyncio
import base64
import json
import logging
import traceback
from pathlib import Path
from typing import Any

import pytest

from regmirror.errors import UpstreamDenied, UpstreamError, UpstreamFailed, UpstreamRateLimited
from regmirror.oci.names import Digest, Repository
from regmirror.telemetry.events import TokenRequested
from tests.fake_registry import FakeRegistry, FakeStorage, Html, Redirect, Status
from tests.integration.asking import ALPINE, LATEST, NAME, asking

USERS = {"alice": "s3cret-pass", "bob": "b0b"}
BUSYBOX = Repository(NAME, "library/busybox")


@pytest.fixture
async def upstream() -> Any:
    async with FakeRegistry(auth="bearer", users=USERS) as registry:
        registry.add_image("library/alpine", "latest", [bytes([number]) for number in range(40)])
        registry.add_image("library/busybox", "latest")
        yield registry


@pytest.fixture
def layers(upstream: Any) -> Any:
    return list(upstream.repository("library/alpine").blobs)


@pytest.fixture
async def client(upstream: Any) -> Any:
    async with asking(upstream.url) as client:
        yield client


async def test_a_pull_costs_one_401_and_one_token(client: Any, upstream: Any, layers: Any) -> None:
    """B26, B27: no ping, no second token, no HEAD before a blob."""
    await client.head_manifest(ALPINE, LATEST)
    await client.get_manifest(ALPINE, LATEST)
    for digest in layers[:3]:
        await client.fetch(digest)
    assert upstream.count("token") == 1
    assert upstream.count("ping") == 0
    assert upstream.count(status=401) == 1
    assert len(upstream.requests) == 3 + 1 + 3
    assert client.told(TokenRequested) == [TokenRequested(NAME, 200)]


async def test_requests_that_come_together_are_challenged_once(
    client: Any, upstream: Any, layers: Any
) -> None:
    """B27: those that arrive while the first one is being challenged wait for what it learns."""
    await asyncio.gather(*(client.fetch(digest) for digest in layers[:8]))
    assert upstream.count(status=401) == 1
    assert upstream.count("token") == 1
    assert upstream.count("blob", status=200) == 8


async def test_a_first_request_that_fails_leaves_nobody_waiting(
    client: Any, upstream: Any, layers: Any
) -> None:
    """The line ends with the first answer, whatever it is."""
    upstream.fault(Status(500), kind="blob", times=1)
    responses = await asyncio.gather(*(client.fetch(digest) for digest in layers[:8]), return_exceptions=True)
    assert sum(isinstance(response, bytes) for response in responses) == 7


async def test_the_next_repository_starts_with_its_token(client: Any, upstream: Any) -> None:
    """B27."""
    await client.head_manifest(ALPINE, LATEST)
    await client.head_manifest(BUSYBOX, LATEST)
    assert upstream.count(status=401) == 1
    assert upstream.count("token") == 2


async def test_forty_layers_share_one_token(client: Any, upstream: Any, layers: Any) -> None:
    """B26: concurrent misses share the request for it."""
    await client.head_manifest(BUSYBOX, LATEST)
    upstream.clear()
    token = upstream.hold("token")
    fetches = [asyncio.ensure_future(client.fetch(digest)) for digest in layers]
    await token.wait_for_arrivals()
    assert upstream.count("blob") == 0
    token.release()
    assert len(await asyncio.gather(*fetches)) == len(layers)
    assert upstream.count("token") == 1
    assert upstream.count(status=401) == 0


async def test_a_token_that_expires_under_forty_layers_is_replaced_once(
    client: Any, upstream: Any, layers: Any
) -> None:
    """B26: one refresh, all continue."""
    await client.fetch(layers[0])
    upstream.revoke_tokens()
    await asyncio.gather(*(client.fetch(digest) for digest in layers))
    assert upstream.count("token") == 2


async def test_who_waits_for_a_token_may_leave(client: Any, upstream: Any, layers: Any) -> None:
    """Protocol 3.3: a cancelled waiter does not cancel the request for it."""
    token = upstream.hold("token")
    first, second = (asyncio.ensure_future(client.fetch(digest)) for digest in layers[:2])
    await token.wait_for_arrivals()
    first.cancel()
    token.release()
    assert await second is not None
    assert upstream.count("token") == 1


async def test_a_token_is_replaced_before_it_expires(client: Any, upstream: Any) -> None:
    """B26: by the clock, without a 401."""
    await client.head_manifest(ALPINE, LATEST)
    client.now = 271.0
    await client.head_manifest(ALPINE, LATEST)
    assert upstream.count("token") == 2
    assert upstream.count(status=401) == 1


async def test_a_failed_token_request_is_not_remembered(client: Any, upstream: Any) -> None:
    """Protocol 3.3."""
    upstream.fault(Status(503), kind="token", times=1)
    with pytest.raises(UpstreamFailed):
        await client.head_manifest(ALPINE, LATEST)
    assert (await client.head_manifest(ALPINE, LATEST)).digest is not None
    assert client.told(TokenRequested) == [TokenRequested(NAME, 503), TokenRequested(NAME, 200)]


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (Status(401), UpstreamDenied),
        (Status(403), UpstreamDenied),
        (Status(404), UpstreamFailed),
        (Status(429), UpstreamRateLimited),
        (Status(500), UpstreamFailed),
        (Html(), UpstreamFailed),
    ],
)
async def test_a_token_endpoint_that_fails_is_told_apart(
    client: Any, upstream: Any, action: Any, error: Any
) -> None:
    """B34."""
    upstream.fault(action, kind="token", times=None)
    with pytest.raises(error) as caught:
        await client.head_manifest(ALPINE, LATEST)
    assert type(caught.value) is error


async def test_an_endless_answer_of_the_token_endpoint_is_refused(client: Any, upstream: Any) -> None:
    """Protocol 3.3: 64 KiB."""
    upstream.token_body = lambda members: b" " * 70_000 + json.dumps(members).encode()
    with pytest.raises(UpstreamFailed) as caught:
        await client.head_manifest(ALPINE, LATEST)
    assert caught.value.reason == "too-large"


async def test_a_missing_repository_is_denied(client: Any, upstream: Any) -> None:
    """Protocol 3.5: Docker Hub answers 401 even to a token."""
    upstream.restricted = {"library/alpine": {"alice"}, "library/busybox": {"alice"}}
    with pytest.raises(UpstreamDenied):
        await client.head_manifest(ALPINE, LATEST)
    assert upstream.count("manifest") == 2
    with pytest.raises(UpstreamDenied):
        await client.head_manifest(BUSYBOX, LATEST)
    assert upstream.count("manifest") == 3


async def test_a_token_endpoint_may_deny(client: Any, upstream: Any) -> None:
    """Protocol 3.5: ghcr.io."""
    upstream.restricted, upstream.deny_at_token = {"library/alpine": {"alice"}}, True
    with pytest.raises(UpstreamDenied) as caught:
        await client.head_manifest(ALPINE, LATEST)
    assert "anonymous" in str(caught.value)


async def test_a_user_gets_what_is_his(upstream: Any) -> None:
    """B60: Basic at the token endpoint."""
    upstream.restricted = {"library/alpine": {"alice"}}
    async with asking(upstream.url, username="alice", password=USERS["alice"]) as client:
        await client.head_manifest(ALPINE, LATEST)
    assert upstream.find("token")[0].query["account"] == "alice"
    assert all(
        request.authorization is None or request.authorization.startswith("Bearer ")
        for request in upstream.find("manifest")
    )


async def test_an_anonymous_request_carries_no_password(client: Any, upstream: Any) -> None:
    """B60: never `Basic Og==`."""
    await client.head_manifest(ALPINE, LATEST)
    assert upstream.find("token")[0].authorization is None


@pytest.mark.parametrize("has_post", [True, False])
async def test_a_refresh_token_is_exchanged(upstream: Any, tmp_path: Path, has_post: bool) -> None:
    """B60: by POST, by GET where there is none."""
    upstream.identity_tokens["refresh"] = "alice"
    upstream.users["<token>"] = "refresh"
    upstream.token_post = has_post
    upstream.restricted = {"library/alpine": {"alice", "<token>"}}
    path = tmp_path / "config.json"
    encoded = base64.b64encode(b"<token>:refresh").decode()
    path.write_text(json.dumps({"auths": {"https://index.docker.io/v1/": {"auth": encoded}}}))
    async with asking(upstream.url, docker_config=str(path)) as client:
        await client.head_manifest(ALPINE, LATEST)
    methods = [request.method for request in upstream.find("token")]
    assert methods == (["POST"] if has_post else ["POST", "GET"])


async def test_basic_is_spoken_where_it_is_asked_for(upstream: Any) -> None:
    """B60."""
    upstream.auth = "basic"
    async with asking(upstream.url, username="bob", password="b0b") as client:
        await client.head_manifest(ALPINE, LATEST)
        await client.head_manifest(BUSYBOX, LATEST)
    assert [request.status for request in upstream.requests] == [401, 200, 200]


@pytest.mark.parametrize("expired", ["invalid_token", "ecr", "public-ecr"])
@pytest.mark.parametrize("method", ["HEAD", "GET"])
async def test_an_expired_password_is_read_again(
    upstream: Any, tmp_path: Path, expired: str, method: str
) -> None:
    """B60, B62: private ECR, and its kin."""
    upstream.auth, upstream.expired = "basic", expired
    path = tmp_path / "password"
    path.write_text(USERS["alice"])
    async with asking(upstream.url, username="alice", password_file=str(path)) as client:
        ask = client.head_manifest if method == "HEAD" else client.get_manifest
        await ask(ALPINE, LATEST)
        upstream.change_password("alice", "new")
        path.write_text("new")
        await ask(ALPINE, LATEST)
    assert upstream.requests[-1].status == 200


@pytest.mark.parametrize("expired", ["invalid_token", "ecr", "public-ecr"])
async def test_an_expired_token_is_replaced_however_it_is_refused(
    client: Any, upstream: Any, expired: str
) -> None:
    """B60."""
    upstream.expired = expired
    await client.get_manifest(ALPINE, LATEST)
    upstream.revoke_tokens()
    await client.get_manifest(ALPINE, LATEST)
    assert upstream.count("token") == 2


@pytest.mark.parametrize("status", [400, 403])
async def test_another_400_or_403_replaces_nothing(client: Any, upstream: Any, status: int) -> None:
    """B60."""
    await client.get_manifest(ALPINE, LATEST)
    upstream.fault(Status(status, body=b"another reason"), kind="manifest", times=None)
    with pytest.raises(UpstreamError):
        await client.get_manifest(ALPINE, LATEST)
    assert upstream.count("token") == 1


@pytest.mark.parametrize(
    "lines",
    [
        ['Basic realm="x"', 'Bearer realm="{realm}",service="{service}",scope="{scope}"'],
        ['Basic realm="x", Bearer realm="{realm}",service="{service}"'],
        ["Bearer realm={realm},service={service}"],
        ['Bearer realm="{realm}"'],
        ['Bearer realm="/token",service="{service}"'],
        ['Bearer realm="{realm}?scope=group/x:pull&account=other",scope="aws"'],
        ['bearer REALM = "{realm}" , Scope="repository:other:pull,push aws" ,'],
    ],
)
async def test_odd_challenges_are_answered(client: Any, upstream: Any, lines: list[str]) -> None:
    """B60: several on a line, quoted commas, unquoted, relative realm, realm with a query."""
    upstream.challenge = lines
    assert (await client.get_manifest(ALPINE, LATEST)).payload
    assert upstream.find("token")[0].scopes[0] == "repository:library/alpine:pull"
    assert "group/x:pull" not in upstream.find("token")[0].scopes


async def test_a_challenge_without_its_header_is_had_from_the_ping(client: Any, upstream: Any) -> None:
    """Protocol 3.5: gcr.io; asked once."""
    bare = Status(401)
    upstream.fault(bare, kind="manifest", where=lambda request: not request.authorization, times=None)
    await client.head_manifest(ALPINE, LATEST)
    await client.head_manifest(BUSYBOX, LATEST)
    assert upstream.count("ping") == 1
    assert upstream.count("manifest", status=401) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"token": None},
        {"token": ""},
        {"access_token": None, "expires_in": None},
        {"expires_in": "300", "issued_at": "1970-01-01T00:00:00Z"},
        {"expires_in": -1},
        {"expires_in": 10**12},
    ],
)
async def test_odd_tokens_are_used(client: Any, upstream: Any, body: Any) -> None:
    """B60."""
    upstream.token_body = body
    await client.head_manifest(ALPINE, LATEST)
    await client.head_manifest(ALPINE, LATEST)
    assert upstream.count("token") == 1


async def test_a_foreign_realm_gets_no_password(upstream: Any) -> None:
    """B61: asked anonymously; here for an upstream by name and a realm at an address."""
    async with FakeRegistry(auth="bearer", users=USERS) as thief:
        upstream.tokens = thief.tokens
        upstream.realm = f"http://localhost:{thief.port}/token"
        options = {"username": "alice", "password": USERS["alice"]}
        async with asking(upstream.url, **options) as client:
            with pytest.raises(UpstreamFailed, match="internal address"):
                await client.head_manifest(ALPINE, LATEST)
        assert thief.connections == 0
        async with asking(upstream.url, auth_hosts=["localhost"], **options) as client:
            await client.head_manifest(ALPINE, LATEST)
        assert thief.find("token")[0].authorization is not None


async def test_a_realm_on_another_port_of_the_own_host_gets_the_password(upstream: Any) -> None:
    """B61."""
    async with FakeRegistry(auth="bearer", users=USERS) as tokens:
        upstream.tokens, upstream.realm = tokens.tokens, f"{tokens.url}/token"
        async with asking(upstream.url, username="alice", password=USERS["alice"]) as client:
            await client.head_manifest(ALPINE, LATEST)
        assert tokens.find("token")[0].authorization is not None


async def test_a_redirected_token_request_leaves_the_password_at_home(upstream: Any) -> None:
    """B61: another origin gets the request without it."""
    async with FakeRegistry(auth="bearer") as other:
        upstream.tokens = other.tokens
        where = f"{other.url}/token?scope=repository:library/alpine:pull"
        upstream.fault(Redirect(where, 302), kind="token", times=None)
        async with asking(upstream.url, username="alice", password=USERS["alice"]) as client:
            await client.head_manifest(ALPINE, LATEST)
        assert upstream.find("token")[0].authorization is not None
        assert other.find("token")[0].authorization is None


async def test_a_token_does_not_leave_the_upstream(client: Any, upstream: Any, layers: Any) -> None:
    """B55: storage gets neither Authorization nor Cookie."""
    async with FakeStorage(upstream) as cdn:
        await client.fetch(layers[0])
        assert not cdn.received_credentials
        assert cdn.requests[0].status == 200


async def test_a_challenge_of_storage_is_not_answered(upstream: Any, layers: Any) -> None:
    """B61."""
    async with (
        FakeStorage(upstream) as cdn,
        asking(upstream.url, username="alice", password=USERS["alice"]) as client,
    ):
        cdn.fault(Status(401, {"WWW-Authenticate": 'Basic realm="x"'}), times=None)
        with pytest.raises(UpstreamFailed):
            await client.fetch(layers[0])
        assert not cdn.received_credentials


async def test_credentials_that_cannot_be_read_are_an_error_and_not_anonymous(
    upstream: Any, tmp_path: Path
) -> None:
    """B62: stale content is served meanwhile, and the log names the file."""
    async with asking(upstream.url, docker_config=str(tmp_path / "nowhere.json")) as client:
        with pytest.raises(UpstreamFailed, match=r"nowhere\.json"):
            await client.head_manifest(ALPINE, LATEST)
    assert upstream.count("token") == 0


async def test_no_secret_shows_anywhere(upstream: Any, layers: Any, caplog: pytest.LogCaptureFixture) -> None:
    """B62: events, errors, logs and repr, through success and every kind of refusal."""
    caplog.set_level(logging.DEBUG)
    shown = []
    async with asking(upstream.url, username="alice", password=USERS["alice"]) as client:
        await client.get_manifest(ALPINE, LATEST)
        faults = (Status(401), Status(403), Status(500), Html(), Redirect("http://u:s3cret-pass@x/"))
        for fault in faults:
            upstream.fault(fault, kind="manifest", times=None)
            shown.append(await failure_of(client.get_manifest(ALPINE, LATEST)))
            upstream.clear_faults()
        upstream.users.clear()
        upstream.revoke_tokens()
        shown.append(await failure_of(client.get_manifest(ALPINE, LATEST)))
        async with FakeStorage(upstream) as cdn:
            upstream.users.update(USERS)
            cdn.fault(Status(403), times=None)
            shown.append(await failure_of(client.fetch(layers[0])))
        shown += [repr(client.events), repr(client), caplog.text]
    secrets = {"s3cret-pass", "X-Amz", *upstream.tokens}
    secrets.add(base64.b64encode(b"alice:s3cret-pass").decode())
    assert len(upstream.tokens) >= 2
    for text in shown:
        assert not [secret for secret in secrets if secret in text]


async def failure_of(work: Any) -> Any:
    """How the failure of ``work`` would look in a log."""
    with pytest.raises(UpstreamError) as caught:
        await work
    return "".join(traceback.format_exception(caught.value))


async def test_a_digest_can_be_asked_for_with_a_token(client: Any, upstream: Any) -> None:
    image = upstream.add_image("library/alpine", None, algorithm="sha512")
    assert (await client.get_manifest(ALPINE, Digest(image.digest))).payload == image.manifest
