"""Whom the fake registry lets in."""

import base64
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import pytest

from tests.fake_registry import FakeRegistry, Status
from tests.fake_registry.auth import Expired

PULL = "repository:a:pull"


def basic(user: str, password: str) -> dict[str, str]:
    encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {encoded}"}


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def upstream() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry(auth="bearer", users={"alice": "secret"}) as registry:
        registry.add_image("a", "1")
        registry.add_image("b", "1")
        yield registry


async def ask(
    http: aiohttp.ClientSession,
    upstream: FakeRegistry,
    token: str | None = None,
    path: str = "/v2/a/manifests/1",
    headers: Mapping[str, str] | None = None,
) -> Any:
    headers = headers or ({"Authorization": f"Bearer {token}"} if token else {})
    async with http.get(f"{upstream.url}{path}", headers=headers) as response:
        await response.read()
        return response


async def token(http: aiohttp.ClientSession, upstream: FakeRegistry, **options: Any) -> Any:
    async with http.get(f"{upstream.url}/token", **options) as response:
        assert response.status == 200
        return await response.json()


def challenges(response: aiohttp.ClientResponse) -> list[str]:
    return response.headers.getall("WWW-Authenticate", [])


async def test_without_a_token_there_is_a_challenge_with_the_realm(
    http: aiohttp.ClientSession, upstream: FakeRegistry
) -> None:
    realm = f'Bearer realm="{upstream.url}/token",service="fake-registry"'
    response = await ask(http, upstream)
    assert response.status == 401
    assert challenges(response) == [f'{realm},scope="{PULL}"']
    assert challenges(await ask(http, upstream, path="/v2/")) == [realm]
    catalog = await ask(http, upstream, path="/v2/_catalog")
    assert challenges(catalog) == [f'{realm},scope="registry:catalog:*"']


async def test_a_token_is_good_for_its_scope(http: aiohttp.ClientSession, upstream: FakeRegistry) -> None:
    body = await token(http, upstream, params={"service": "fake-registry", "scope": PULL})
    assert body["token"] == body["access_token"]
    assert body["expires_in"] == 300
    assert (await ask(http, upstream, body["token"])).status == 200
    assert (await ask(http, upstream, body["token"], "/v2/")).status == 200
    other = await ask(http, upstream, body["token"], "/v2/b/manifests/1")
    assert other.status == 401
    assert 'error="insufficient_scope"' in challenges(other)[0]


async def test_scopes_may_be_several_parameters_or_one_with_spaces(
    http: aiohttp.ClientSession, upstream: FakeRegistry
) -> None:
    for scopes in ([PULL, "repository:b:pull,push"], [f"{PULL} repository:b:pull"]):
        body = await token(http, upstream, params=[("scope", scope) for scope in scopes])
        assert (await ask(http, upstream, body["token"])).status == 200
        assert (await ask(http, upstream, body["token"], "/v2/b/manifests/1")).status == 200
    assert upstream.find("token")[1].scopes == [PULL, "repository:b:pull"]


async def test_a_wrong_password_gets_no_token(http: aiohttp.ClientSession, upstream: FakeRegistry) -> None:
    wrong = basic("alice", "wrong")
    async with http.get(f"{upstream.url}/token", headers=wrong) as response:
        assert response.status == 401
    async with http.get(f"{upstream.url}/token", headers={"Authorization": "Basic Og=="}) as response:
        assert response.status == 401


async def test_without_anonymous_a_token_requires_a_password(
    http: aiohttp.ClientSession, upstream: FakeRegistry
) -> None:
    upstream.anonymous = False
    async with http.get(f"{upstream.url}/token") as response:
        assert response.status == 401
    assert await token(http, upstream, headers=basic("alice", "secret"))


async def test_a_restricted_repository_is_pulled_by_its_users_only(
    http: aiohttp.ClientSession, upstream: FakeRegistry
) -> None:
    upstream.restricted = {"a": {"alice"}}
    params = {"scope": PULL}
    alice = await token(http, upstream, params=params, headers=basic("alice", "secret"))
    assert (await ask(http, upstream, alice["token"])).status == 200
    anonymous = await token(http, upstream, params=params)
    assert (await ask(http, upstream, anonymous["token"])).status == 401
    upstream.deny_at_token = True
    async with http.get(f"{upstream.url}/token", params=params) as response:
        assert response.status == 403


async def test_a_refresh_token_is_taken_by_post(http: aiohttp.ClientSession, upstream: FakeRegistry) -> None:
    upstream.identity_tokens["refresh-1"] = "alice"
    upstream.restricted = {"a": {"alice"}}
    form = {"grant_type": "refresh_token", "refresh_token": "refresh-1", "scope": PULL}
    async with http.post(f"{upstream.url}/token", data=form) as response:
        value = (await response.json())["access_token"]
    assert (await ask(http, upstream, value)).status == 200
    request = upstream.find("token", "POST")[0]
    assert (request.form["refresh_token"], request.scopes) == ("refresh-1", [PULL])
    async with http.post(f"{upstream.url}/token", data=form | {"refresh_token": "x"}) as response:
        assert response.status == 401


async def test_offline_tokens_are_given_to_users(http: aiohttp.ClientSession, upstream: FakeRegistry) -> None:
    alice = basic("alice", "secret")
    body = await token(http, upstream, params={"offline_token": "true"}, headers=alice)
    assert upstream.identity_tokens == {body["refresh_token"]: "alice"}


async def test_post_may_be_unsupported(http: aiohttp.ClientSession, upstream: FakeRegistry) -> None:
    upstream.token_post = False
    async with http.post(f"{upstream.url}/token", data={"grant_type": "refresh_token"}) as response:
        assert response.status == 405


async def test_a_token_expires_by_the_clock(http: aiohttp.ClientSession, upstream: FakeRegistry) -> None:
    now = 1000.0
    upstream.clock = lambda: now
    body = await token(http, upstream, params={"scope": PULL})
    now += 299
    assert (await ask(http, upstream, body["token"])).status == 200
    now += 1
    response = await ask(http, upstream, body["token"])
    assert response.status == 401
    assert 'error="invalid_token"' in challenges(response)[0]


@pytest.mark.parametrize(
    ("style", "status", "challenged"),
    [("invalid_token", 401, True), ("ecr", 403, False), ("public-ecr", 400, False)],
)
async def test_revoked_tokens_are_rejected_in_the_way_of_the_registry(
    http: aiohttp.ClientSession, upstream: FakeRegistry, style: Expired, status: int, challenged: bool
) -> None:
    upstream.expired = style
    value = upstream.issue_token(PULL)
    assert (await ask(http, upstream, value)).status == 200
    upstream.revoke_tokens()
    response = await ask(http, upstream, value)
    assert response.status == status
    assert bool(challenges(response)) == challenged
    assert (await ask(http, upstream, upstream.issue_token(PULL))).status == 200


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"token": None}, {"access_token", "expires_in", "issued_at"}),
        ({"expires_in": None}, {"token", "access_token", "issued_at"}),
        ({"token": ""}, {"token", "access_token", "expires_in", "issued_at"}),
        (lambda members: {"token": members["token"]}, {"token"}),
    ],
)
async def test_the_token_response_can_be_changed(
    http: aiohttp.ClientSession, upstream: FakeRegistry, change: Any, expected: Any
) -> None:
    upstream.token_body = change
    assert set(await token(http, upstream)) == expected


async def test_the_token_response_can_be_invalid(http: aiohttp.ClientSession, upstream: FakeRegistry) -> None:
    upstream.token_body = lambda members: b"<html>"
    async with http.get(f"{upstream.url}/token") as response:
        assert await response.read() == b"<html>"


async def test_the_challenge_can_be_anything(http: aiohttp.ClientSession, upstream: FakeRegistry) -> None:
    upstream.challenge = ['Negotiate, Basic realm="x"', 'BEARER realm = "{realm}?scope={scope}" ,{odd}']
    assert challenges(await ask(http, upstream)) == [
        'Negotiate, Basic realm="x"',
        f'BEARER realm = "{upstream.url}/token?scope={PULL}" ,{{odd}}',
    ]
    upstream.challenge = []
    response = await ask(http, upstream)
    assert (response.status, challenges(response)) == (401, [])


async def test_faults_of_the_token_endpoint(http: aiohttp.ClientSession, upstream: FakeRegistry) -> None:
    upstream.fault(Status(503), kind="token")
    async with http.get(f"{upstream.url}/token") as response:
        assert response.status == 503
    assert await token(http, upstream)


async def test_tokens_may_come_from_another_server(
    http: aiohttp.ClientSession, upstream: FakeRegistry
) -> None:
    async with FakeRegistry(auth="bearer") as issuer:
        upstream.realm, upstream.tokens = f"{issuer.url}/token", issuer.tokens
        assert f'realm="{issuer.url}/token"' in challenges(await ask(http, upstream))[0]
        body = await token(http, issuer, params={"scope": PULL})
        assert (await ask(http, upstream, body["token"])).status == 200


async def test_basic_lets_users_in(http: aiohttp.ClientSession) -> None:
    async with FakeRegistry(auth="basic", users={"alice": "se:cret"}) as upstream:
        upstream.add_image("a", "1")
        alice = basic("alice", "se:cret")
        response = await ask(http, upstream)
        assert (response.status, challenges(response)) == (401, ['Basic realm="fake-registry"'])
        assert (await ask(http, upstream, headers=alice)).status == 200
        assert (await ask(http, upstream, headers=basic("bob", "x"))).status == 401
        upstream.expired = "ecr"
        upstream.change_password("alice", "new")
        assert (await ask(http, upstream, headers=alice)).status == 403
        assert (await ask(http, upstream, headers=basic("alice", "new"))).status == 200


async def test_malformed_basic_is_rejected(http: aiohttp.ClientSession) -> None:
    async with FakeRegistry(auth="basic", users={"alice": "secret"}) as upstream:
        for value in ("Basic", "Basic !!!", "Basic Og==", "Basic YWxpY2U=", "Bearer x"):
            async with http.get(f"{upstream.url}/v2/", headers={"Authorization": value}) as response:
                assert response.status == 401
