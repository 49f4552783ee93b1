"""Bearer tokens: their cache, the requests that fetch them, their lifetime.

The token protocol is distribution's "Token Authentication" (GET) and "OAuth2 Token
Authentication" (POST); comments name the registries that deviate from it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from yarl import URL

from regmirror.errors import UpstreamDenied, UpstreamError, UpstreamFailed
from regmirror.lru import Lru, weigh_texts
from regmirror.upstream.auth.credentials import Credential
from regmirror.upstream.auth.url_policy import host_of
from regmirror.upstream.error_mapping import error_for_status

CLIENT_ID: Final = "regmirror"
SHORTEST: Final = 60.0  # seconds; the default of the protocol for an absent expires_in
LONGEST: Final = 24 * 3600.0
TOKENS_BYTES: Final = 4 * 1024 * 1024  # of one upstream's; Docker Hub has one of 3 KiB for each repository
SWEEP: Final = 60.0  # seconds between two removals of expired tokens
_USABLE: Final = re.compile(r"[\x21-\x7e]{1,65536}")


@dataclass(frozen=True, slots=True)
class TokenKey:
    """The identity of a token at one upstream."""

    realm: str
    service: str
    scopes: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class TokenScope:
    """A token to fetch: from where, for which scopes (the needed one first), for whom."""

    realm: URL
    service: str
    scopes: tuple[str, ...]
    credential: Credential | None

    @property
    def key(self) -> TokenKey:
        fingerprint = self.credential.fingerprint if self.credential else ""
        return TokenKey(str(self.realm), self.service, tuple(sorted(self.scopes)), fingerprint)


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One request to a token endpoint; a ``form`` makes it a POST."""

    url: URL
    authorization: str | None = None
    form: dict[str, str] | None = None

    def __repr__(self) -> str:
        method = "GET" if self.form is None else "POST"
        return f"TokenRequest({method} {self.url.raw_host}{self.url.raw_path})"  # the form is secret


@dataclass(frozen=True, slots=True)
class TokenResponse:
    """The response of the token endpoint."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"TokenResponse({self.status})"  # the body is secret


@dataclass(frozen=True, slots=True)
class Token:
    """An opaque token and the time of the monotonic clock from which it is no longer used."""

    value: str
    expires: float

    def __repr__(self) -> str:
        return f"Token(expires={self.expires})"


class TokenCache:
    """The tokens of one upstream; the least recently used are dropped first."""

    def __init__(self, limit: int = TOKENS_BYTES) -> None:
        self._tokens: Lru[TokenKey, Token] = Lru(limit, _weigh)
        self._swept_at = -math.inf

    def __len__(self) -> int:
        return len(self._tokens)

    def find(self, key: TokenKey, now: float) -> Token | None:
        """A token that has not expired, or None. Also drops expired tokens once a minute."""
        if now - self._swept_at >= SWEEP:
            self._swept_at = now
            self._tokens.drop_where(lambda token: token.expires <= now)
        token = self._tokens.get(key)
        if token is None or now >= token.expires:
            return None
        return token

    def put(self, key: TokenKey, token: Token) -> None:
        self._tokens.put(key, token)

    def drop(self, key: TokenKey, token: Token) -> None:
        """Drop ``token``, but not a newer one that another request has fetched meanwhile."""
        if self._tokens.get(key) == token:
            self._tokens.drop(key)


def _weigh(key: TokenKey, token: Token) -> int:
    return weigh_texts(key.realm, key.service, key.fingerprint, token.value, *key.scopes)


def request_token(
    upstream: str, scope: TokenScope
) -> Generator[TokenRequest, TokenResponse, tuple[str, float]]:
    """Fetch a token; returns it and its lifetime in seconds, or raises an UpstreamError.

    A refresh token is exchanged by POST; where that does not exist it serves as the password of
    a GET. A password is sent by GET, and by POST only where GET does not exist.
    """
    credential = scope.credential
    if credential is not None and credential.is_identity:
        response = yield _post(scope, {"grant_type": "refresh_token"}, credential)
        if response.status in (400, 401, 404, 405):
            response = yield _get(scope)
    else:
        response = yield _get(scope)
        if credential is not None and response.status in (404, 405):
            response = yield _post(scope, {"grant_type": "password"}, credential)
    if response.status != 200:
        raise _rejection(upstream, scope, response)
    return parse_token(upstream, response.body)


def _get(scope: TokenScope) -> TokenRequest:
    # The realm's own scope would come first, and some servers look at the first alone.
    query = [(key, value) for key, value in scope.realm.query.items() if key != "scope"]
    if scope.service:
        query = [item for item in query if item[0] != "service"]
        query.append(("service", scope.service))
    query += [("scope", one) for one in scope.scopes]
    credential = scope.credential
    if credential is None:
        return TokenRequest(scope.realm.with_query(query))
    if credential.username and not credential.is_identity:
        query.append(("account", credential.username))
    return TokenRequest(scope.realm.with_query(query), authorization=credential.basic)


def _post(scope: TokenScope, form: dict[str, str], credential: Credential) -> TokenRequest:
    if credential.is_identity:
        form["refresh_token"] = credential.secret
    else:
        form |= {"username": credential.username, "password": credential.secret}
    form |= {"client_id": CLIENT_ID, "scope": " ".join(scope.scopes)}
    if scope.service:
        form["service"] = scope.service
    return TokenRequest(scope.realm, form=form)


def _rejection(upstream: str, scope: TokenScope, response: TokenResponse) -> UpstreamError:
    host, status = host_of(scope.realm), response.status
    if status in (401, 403):
        whom = "the credentials configured for it" if scope.credential else "an anonymous request"
        message = f"its token endpoint {host} rejected {whom} ({status})"
        return UpstreamDenied(upstream, message, reason="token")
    if status == 429:
        return error_for_status(upstream, host, status, response.headers, "a token")
    # Not even a 404 says anything about the content that the token is for.
    message = f"its token endpoint {host} returned {status}"
    return UpstreamFailed(upstream, message, reason="token")


def parse_token(upstream: str, body: bytes) -> tuple[str, float]:
    """The token and its lifetime in seconds; raises UpstreamFailed for anything else."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise UpstreamFailed(upstream, "its token endpoint returned no JSON", reason="token")
    for name in ("token", "access_token"):
        value = document.get(name)
        if isinstance(value, str) and _USABLE.fullmatch(value):
            return value, lifetime(document.get("expires_in"))
    raise UpstreamFailed(upstream, "its token endpoint returned no token", reason="token")


def lifetime(expires_in: Any) -> float:
    """Seconds until a token expires: absent, malformed and less than a minute count as a minute.

    ``issued_at`` is ignored: the lifetime is counted from receipt, because clocks differ.
    """
    try:
        seconds = float(expires_in)
    except (TypeError, ValueError, OverflowError):
        return SHORTEST
    if math.isnan(seconds):
        return SHORTEST
    return min(max(seconds, SHORTEST), LONGEST)


def use_until(received: float, seconds: float) -> float:
    """When to fetch the next token: after 90 % of the lifetime, at least 10 seconds early."""
    return received + min(seconds * 0.9, seconds - 10.0)
