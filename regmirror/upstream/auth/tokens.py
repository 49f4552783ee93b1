"""Bearer tokens: what they are asked with, how they are asked for, how long they are used.

The token protocol is distribution's "Token Authentication" (GET) and "OAuth2 Token
Authentication" (POST); what registries do beyond it is noted where it is met.
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
SHORTEST: Final = 60.0  # seconds; what the protocol says an absent expires_in means
LONGEST: Final = 24 * 3600.0
TOKENS_BYTES: Final = 4 * 1024 * 1024  # of one upstream's; Docker Hub has one of 3 KiB for each repository
SWEEP: Final = 60.0  # seconds between two looks for expired tokens
_USABLE: Final = re.compile(r"[\x21-\x7e]{1,65536}")


@dataclass(frozen=True, slots=True)
class TokenKey:
    """What makes two tokens of one upstream the same."""

    realm: str
    service: str
    scopes: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class TokenScope:
    """A token to ask for: where, for which scopes (the needed one first), as whom."""

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
class TokenAnswer:
    """What the token endpoint answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"TokenAnswer({self.status})"  # the body is secret


@dataclass(frozen=True, slots=True)
class Token:
    """An opaque token and the moment of the monotonic clock from which it is no longer used."""

    value: str
    expires: float

    def __repr__(self) -> str:
        return f"Token(expires={self.expires})"


class TokenCache:
    """The tokens of one upstream, the least recently used of which go first."""

    def __init__(self, limit: int = TOKENS_BYTES) -> None:
        self._tokens: Lru[TokenKey, Token] = Lru(limit, _weigh)
        self._swept_at = -math.inf

    def __len__(self) -> int:
        return len(self._tokens)

    def find(self, key: TokenKey, now: float) -> Token | None:
        """A token that may still be used; now and then the expired ones are dropped."""
        if now - self._swept_at >= SWEEP:
            self._swept_at = now
            self._tokens.drop_where(lambda kept: kept.expires <= now)
        token = self._tokens.get(key)
        if token is None or now >= token.expires:
            return None
        return token

    def put(self, key: TokenKey, token: Token) -> None:
        self._tokens.put(key, token)

    def drop(self, key: TokenKey, token: Token) -> None:
        """Forget ``token``, but not a newer one that somebody else has fetched meanwhile."""
        if self._tokens.get(key) == token:
            self._tokens.drop(key)


def _weigh(key: TokenKey, token: Token) -> int:
    return weigh_texts(key.realm, key.service, key.fingerprint, token.value, *key.scopes)


def request_token(
    upstream: str, grant: TokenScope
) -> Generator[TokenRequest, TokenAnswer, tuple[str, float]]:
    """Ask for a token; returns it and its life in seconds, or raises an UpstreamError.

    A refresh token is exchanged by POST; where that does not exist it serves as the password of
    a GET. A password is sent by GET, and by POST only where GET does not exist.
    """
    credential = grant.credential
    if credential is not None and credential.is_identity:
        answer = yield _post(grant, {"grant_type": "refresh_token"}, credential)
        if answer.status in (400, 401, 404, 405):
            answer = yield _get(grant)
    else:
        answer = yield _get(grant)
        if credential is not None and answer.status in (404, 405):
            answer = yield _post(grant, {"grant_type": "password"}, credential)
    if answer.status != 200:
        raise _refusal(upstream, grant, answer)
    return parse_token(upstream, answer.body)


def _get(grant: TokenScope) -> TokenRequest:
    # The realm's own scope would come first, and some servers look at the first alone.
    query = [(key, value) for key, value in grant.realm.query.items() if key != "scope"]
    if grant.service:
        query = [item for item in query if item[0] != "service"]
        query.append(("service", grant.service))
    query += [("scope", scope) for scope in grant.scopes]
    credential = grant.credential
    if credential is None:
        return TokenRequest(grant.realm.with_query(query))
    if credential.username and not credential.is_identity:
        query.append(("account", credential.username))
    return TokenRequest(grant.realm.with_query(query), authorization=credential.basic)


def _post(grant: TokenScope, form: dict[str, str], credential: Credential) -> TokenRequest:
    if credential.is_identity:
        form["refresh_token"] = credential.secret
    else:
        form |= {"username": credential.username, "password": credential.secret}
    form |= {"client_id": CLIENT_ID, "scope": " ".join(grant.scopes)}
    if grant.service:
        form["service"] = grant.service
    return TokenRequest(grant.realm, form=form)


def _refusal(upstream: str, grant: TokenScope, answer: TokenAnswer) -> UpstreamError:
    host, status = host_of(grant.realm), answer.status
    if status in (401, 403):
        whom = "the credentials configured for it" if grant.credential else "an anonymous request"
        message = f"its token endpoint {host} refused {whom} ({status})"
        return UpstreamDenied(upstream, message, reason="token")
    if status == 429:
        return error_for_status(upstream, host, status, answer.headers, "a token")
    # Not even a 404 says anything about the content that the token is for.
    message = f"its token endpoint {host} answered {status}"
    return UpstreamFailed(upstream, message, reason="token")


def parse_token(upstream: str, body: bytes) -> tuple[str, float]:
    """The token and its life in seconds; raises UpstreamFailed for anything else."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise UpstreamFailed(upstream, "its token endpoint did not answer in JSON", reason="token")
    for name in ("token", "access_token"):
        value = document.get(name)
        if isinstance(value, str) and _USABLE.fullmatch(value):
            return value, lifetime(document.get("expires_in"))
    raise UpstreamFailed(upstream, "its token endpoint answered without a token", reason="token")


def lifetime(expires_in: Any) -> float:
    """Seconds of life: absent, unreadable and anything below a minute count as a minute.

    ``issued_at`` is not looked at: life is counted from receipt, because clocks differ.
    """
    try:
        seconds = float(expires_in)
    except (TypeError, ValueError, OverflowError):
        return SHORTEST
    if math.isnan(seconds):
        return SHORTEST
    return min(max(seconds, SHORTEST), LONGEST)


def use_until(received: float, life: float) -> float:
    """When to ask for the next token: at 90 % of its life, at least 10 seconds early."""
    return received + min(life * 0.9, life - 10.0)
