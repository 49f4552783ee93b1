"""Token requests, token responses, and lifetimes (B26, B60)."""

import base64
from typing import Any

import pytest
from yarl import URL

from regmirror.errors import UpstreamDenied, UpstreamFailed, UpstreamRateLimited
from regmirror.upstream.auth.credentials import Credential
from regmirror.upstream.auth.tokens import (
    LONGEST,
    TOKENS_BYTES,
    Token,
    TokenCache,
    TokenKey,
    TokenResponse,
    TokenScope,
    lifetime,
    parse_token,
    request_token,
    use_until,
)

REALM = URL("https://auth.example.com/token")
OURS = "repository:library/alpine:pull"
OK = TokenResponse(200, {}, b'{"token":"t","expires_in":300}')
ALICE = Credential("alice", "s3cret")
IDENTITY = Credential("<token>", "refresh-me", is_identity=True)


def scope(realm: URL = REALM, service: str = "s", scopes: Any = (OURS,), credential: Any = None) -> Any:
    return TokenScope(realm, service, tuple(scopes), credential)


def requests_of(asked: Any, *responses: Any) -> Any:
    """The requests made while the endpoint answers so, and the result."""
    flow = request_token("docker.io", asked)
    requests = [next(flow)]
    try:
        for response in responses:
            requests += [flow.send(response)]
    except StopIteration as stop:
        return requests, stop.value
    raise AssertionError(f"wants more answers: {requests}")


def test_an_anonymous_token_is_asked_for_without_any_authorization() -> None:
    """B60: never `Basic Og==`."""
    (request,), result = requests_of(scope(), OK)
    assert request.authorization is None
    assert request.form is None
    assert request.url.query.getall("scope") == [OURS]
    assert request.url.query["service"] == "s"
    assert "account" not in request.url.query
    assert result == ("t", 300.0)


def test_a_password_is_sent_as_basic_with_the_account() -> None:
    """B60."""
    (request,), _ = requests_of(scope(credential=ALICE), OK)
    assert request.authorization == "Basic " + base64.b64encode(b"alice:s3cret").decode()
    assert request.url.query["account"] == "alice"


def test_each_scope_is_a_parameter_and_ours_comes_first() -> None:
    """B60: some servers look at the first scope alone."""
    (request,), _ = requests_of(scope(scopes=(OURS, "aws")), OK)
    assert request.url.query.getall("scope") == [OURS, "aws"]


def test_a_realm_keeps_its_query_except_for_scope_and_service() -> None:
    """B60: nvcr.io puts a scope into its realm."""
    realm = URL("https://nvcr.io/proxy_auth?scope=group/x:pull,push&service=old&x=1")
    (request,), _ = requests_of(scope(realm, service="new"), OK)
    assert request.url.query.getall("scope") == [OURS]
    assert request.url.query.getall("service") == ["new"]
    assert request.url.query["x"] == "1"


def test_a_missing_service_is_left_out() -> None:
    """B60."""
    (request,), _ = requests_of(scope(service=""), OK)
    assert "service" not in request.url.query


def test_a_refresh_token_is_posted_as_a_form() -> None:
    """B60: one scope parameter, separated by spaces."""
    (request,), _ = requests_of(scope(scopes=(OURS, "aws"), credential=IDENTITY), OK)
    assert request.authorization is None
    assert request.url == REALM
    assert request.form == {
        "grant_type": "refresh_token",
        "refresh_token": "refresh-me",
        "client_id": "regmirror",
        "service": "s",
        "scope": f"{OURS} aws",
    }


@pytest.mark.parametrize("status", [400, 401, 404, 405])
def test_a_refused_post_falls_back_to_get(status: int) -> None:
    """B60: refresh token by POST with GET fallback."""
    refusal = TokenResponse(status, {}, b"")
    (post, get), result = requests_of(scope(credential=IDENTITY), refusal, OK)
    assert post.form is not None
    assert get.form is None
    assert get.authorization == "Basic " + base64.b64encode(b"<token>:refresh-me").decode()
    assert result[0] == "t"


@pytest.mark.parametrize("status", [404, 405])
def test_a_password_is_posted_where_get_does_not_exist(status: int) -> None:
    """B60: password scope as the last resort."""
    refusal = TokenResponse(status, {}, b"")
    (_, post), _ = requests_of(scope(credential=ALICE), refusal, OK)
    assert post.form is not None
    assert post.form["grant_type"] == "password"
    assert post.form["username"] == "alice"
    assert post.form["password"] == "s3cret"


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusing_endpoint_denies(status: int) -> None:
    """B34: ghcr.io refuses what is private or does not exist at the token endpoint."""
    with pytest.raises(UpstreamDenied) as caught:
        requests_of(scope(credential=ALICE), TokenResponse(status, {}, b"s3cret"))
    assert "s3cret" not in str(caught.value)


def test_a_limiting_endpoint_is_obeyed() -> None:
    """B30: a 429 of the token endpoint counts as the upstream's."""
    with pytest.raises(UpstreamRateLimited) as caught:
        requests_of(scope(), TokenResponse(429, {"Retry-After": "7"}, b""))
    assert caught.value.retry_after == 7.0


@pytest.mark.parametrize("status", [302, 400, 404, 500, 503])
def test_a_failing_endpoint_says_nothing_about_the_content(status: int) -> None:
    """B36: not even its 404 may make a cached tag be forgotten."""
    with pytest.raises(UpstreamFailed, match=f"auth.example.com returned {status}"):
        requests_of(scope(), TokenResponse(status, {}, b""))


@pytest.mark.parametrize(
    "body",
    [
        b'{"access_token":"t"}',
        b'{"token":"","access_token":"t"}',
        b'{"token":null,"access_token":"t"}',
        b'{"token":"t","access_token":""}',
        b'{"token":"t","access_token":"u"}',
        b'{"token":7,"access_token":"t"}',
    ],
)
def test_either_member_may_hold_the_token(body: bytes) -> None:
    """B60: access_token."""
    assert parse_token("docker.io", body)[0] == "t"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"null",
        b"{}",
        b'{"token":""}',
        b'{"token":7}',
        b'{"token":"a\\r\\nX-Evil: 1"}',
        b'{"token":"a b"}',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_an_answer_without_a_usable_token_is_a_failure(body: bytes) -> None:
    """B60: nothing from outside gets into a header unseen."""
    with pytest.raises(UpstreamFailed):
        parse_token("docker.io", body)


@pytest.mark.parametrize(
    ("expires_in", "life"),
    [
        (None, 60.0),
        (0, 60.0),
        (-5, 60.0),
        (30, 60.0),
        (300, 300.0),
        ("300", 300.0),
        ("soon", 60.0),
        (299.5, 299.5),
        (10**12, LONGEST),
        (10**400, 60.0),
        (float("inf"), LONGEST),
        (float("nan"), 60.0),
        ([], 60.0),
        ({}, 60.0),
    ],
)
def test_every_kind_of_life_is_understood(expires_in: Any, life: Any) -> None:
    """B60: absent or odd expires_in."""
    assert lifetime(expires_in) == life


def test_issued_at_does_not_matter() -> None:
    """B60: clocks differ, life counts from receipt."""
    body = b'{"token":"t","expires_in":300,"issued_at":"1970-01-01T00:00:00Z"}'
    assert parse_token("docker.io", body) == ("t", 300.0)


def test_a_token_is_replaced_before_it_expires() -> None:
    """B26: at 90 % of its life, at least ten seconds early."""
    assert use_until(1000.0, 300.0) == 1270.0
    assert use_until(1000.0, 60.0) == 1050.0


def key(scope: str = "a", fingerprint: str = "") -> Any:
    return TokenKey("r", "s", (scope,), fingerprint)


def test_the_key_of_a_token_does_not_depend_on_the_order_of_scopes() -> None:
    """B26: (realm, service, sorted scopes, credential)."""
    assert scope(scopes=("a", "b")).key == scope(scopes=("b", "a")).key
    assert scope().key != scope(credential=ALICE).key
    assert scope().key != scope(service="other").key
    assert scope().key != scope(URL("https://other/")).key


def test_a_token_is_found_until_it_expires() -> None:
    cache = TokenCache()
    token = Token("t", 100.0)
    cache.put(key(), token)
    assert cache.find(key(), 99.9) == token
    assert cache.find(key(), 100.0) is None
    assert cache.find(key("b"), 0.0) is None


def test_the_least_recently_used_token_goes_first() -> None:
    cache = TokenCache(limit=5_000)
    for scope in ("a", "b"):
        cache.put(key(scope), Token("t" * 1_500, 100.0))
    cache.find(key("a"), 0.0)
    cache.put(key("c"), Token("t" * 1_500, 100.0))
    assert cache.find(key("a"), 0.0) is not None
    assert cache.find(key("b"), 0.0) is None


def test_tokens_take_no_more_than_their_bytes() -> None:
    """B100: an upstream may send tokens of 64 KiB, one for each repository that is asked for."""
    cache = TokenCache()
    for number in range(1_000):
        cache.put(key(f"repository:{number}:pull"), Token(f"{number:065536}", 100.0))
    assert 0 < len(cache) <= TOKENS_BYTES // 65_536


def test_expired_tokens_are_dropped() -> None:
    """B100: a token that may no longer be used takes no memory."""
    cache = TokenCache()
    for number in range(10):
        cache.put(key(f"a{number}"), Token("t", 100.0))
    cache.put(key("b"), Token("t", 300.0))
    assert cache.find(key("b"), 200.0) is not None
    assert len(cache) == 1


def test_dropping_a_token_leaves_a_newer_one() -> None:
    """B26: of 40 requests refused at once, one fetches a token and all use it."""
    cache = TokenCache()
    old, new = Token("old", 100.0), Token("new", 100.0)
    cache.put(key(), new)
    cache.drop(key(), old)
    assert cache.find(key(), 0.0) == new
    cache.drop(key(), new)
    assert cache.find(key(), 0.0) is None


def test_nothing_shows_a_secret() -> None:
    """B62: repr of everything that carries one."""
    shown = [repr(Token("s3cret", 1.0)), repr(TokenResponse(200, {}, b"s3cret"))]
    shown += [repr(scope(credential=ALICE)), repr(scope(credential=ALICE).key)]
    for credential in (ALICE, Credential("u", "s3cret", is_identity=True)):
        (request,), _ = requests_of(scope(credential=credential), OK)
        shown.append(repr(request))
    encoded = base64.b64encode(b"alice:s3cret").decode()
    for text in shown:
        assert "s3cret" not in text
        assert encoded not in text
