"""The auth flow of one request, as a generator without I/O (``docs/decisions/0003``).

``Authenticator.request`` yields steps, and the caller sends it their results:

    Send(authorization)         -> Response     the request itself, redirects followed
    Ping()                      -> Response     GET /v2/, for a challenge that the first response lacks
    FindCredential(is_refused)  -> Credential | None
    FetchToken(scope)           -> Token        one request for concurrent callers

It returns the last Response, of any status. The error of a step is thrown into the generator and
ends it. A request is sent at most twice. The upstream's challenge is remembered, so that the next
repository fetches its token first (B27), and so are the scopes that a repository needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, TypeAlias, cast

from multidict import MultiMapping
from yarl import URL

from regmirror.errors import UpstreamDenied, UpstreamError, UpstreamFailed
from regmirror.lru import Lru, weigh_texts
from regmirror.upstream.auth.challenges import Challenge, parse_challenges, preferred
from regmirror.upstream.auth.credentials import Credential
from regmirror.upstream.auth.tokens import Token, TokenCache, TokenScope
from regmirror.upstream.auth.url_policy import (
    UrlRejected,
    check_realm,
    may_receive_credentials,
    resolve_realm,
)

_SCOPES_BYTES: Final = 2 * 1024 * 1024  # of the scopes in challenges, of one upstream
#: Private ECR answers 403 and public ECR 400 to a token that has expired, without a challenge.
_EXPIRED: Final = {
    400: re.compile(r"authorization token", re.IGNORECASE),
    403: re.compile(r"authorization token has expired", re.IGNORECASE),
}


class Response(Protocol):
    """A response. ``excerpt`` is the start of an error's body, empty for HEAD."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> MultiMapping[str]: ...
    @property
    def is_upstream(self) -> bool: ...
    @property
    def excerpt(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Send:
    authorization: str | None

    def __repr__(self) -> str:
        return f"Send({(self.authorization or 'nothing').partition(' ')[0]})"


@dataclass(frozen=True, slots=True)
class Ping:
    pass


@dataclass(frozen=True, slots=True)
class FindCredential:
    is_refused: bool


@dataclass(frozen=True, slots=True)
class FetchToken:
    scope: TokenScope


Step: TypeAlias = Send | Ping | FindCredential | FetchToken
#: The result that a step is sent differs from step to step; each is cast where it arrives.
Flow: TypeAlias = Generator[Step, Any, Response]


@dataclass(frozen=True, slots=True)
class _Authorization:
    """The value of an Authorization header and its origin; ``is_new`` before its first use."""

    value: str | None
    credential: Credential | None = None
    scope: TokenScope | None = None
    token: Token | None = None
    is_new: bool = False


_ANONYMOUS: Final = _Authorization(None)


class Authenticator:
    """The challenge, the scopes and the tokens of one upstream."""

    def __init__(
        self,
        name: str,
        base_url: URL,
        auth_hosts: list[str],
        clock: Callable[[], float],
        tokens: TokenCache | None = None,
    ) -> None:
        self.tokens = TokenCache() if tokens is None else tokens
        self._name, self._base_url, self._auth_hosts, self._clock = name, base_url, auth_hosts, clock
        self._challenge: Challenge | None = None
        self._scopes: Lru[str, tuple[str, ...]] = Lru(
            _SCOPES_BYTES, lambda name, scopes: weigh_texts(name, *scopes)
        )

    def request(self, repository: str) -> Flow:
        """One request for content of ``repository``."""
        used = _ANONYMOUS
        if self._challenge is not None:
            try:
                used = yield from self._obtain(self._challenge, repository)
            except UpstreamError:
                self._challenge = None  # it may have changed; the next request learns it again
                raise
        response = cast("Response", (yield Send(used.value)))
        if not self._wants_authentication(response, used):
            return response
        challenge = preferred(parse_challenges(response.headers.getall("WWW-Authenticate", [])))
        if challenge is None:
            challenge = yield from self._ping_challenge()
        if challenge is None:
            return response
        self._learn(challenge, repository)
        retry = yield from self._obtain(challenge, repository, rejected=used)
        if retry.value is None or retry.value == used.value:
            return response
        return cast("Response", (yield Send(retry.value)))

    def _wants_authentication(self, response: Response, used: _Authorization) -> bool:
        if not response.is_upstream:
            return False  # the challenge of a storage host is not the upstream's
        if response.status == 401:
            return True
        if used.value is None or response.status not in _EXPIRED:
            return False
        if response.excerpt:
            return bool(_EXPIRED[response.status].search(response.excerpt))
        # The response to a HEAD has no body with the reason: trust the status that each of them sends.
        return response.status == (403 if used.token is None else 400)

    def _ping_challenge(self) -> Generator[Step, Any, Challenge | None]:
        """The remembered challenge, else that of ``/v2/``: gcr.io sends it nowhere else."""
        if self._challenge is None:
            response = cast("Response", (yield Ping()))
            return preferred(parse_challenges(response.headers.getall("WWW-Authenticate", [])))
        return self._challenge

    def _learn(self, challenge: Challenge, repository: str) -> None:
        self._challenge = Challenge(challenge.scheme, challenge.parameters | {"scope": ""})
        self._scopes.put(repository, challenge.scopes)

    def _obtain(
        self, challenge: Challenge, repository: str, rejected: _Authorization | None = None
    ) -> Generator[Step, Any, _Authorization]:
        """The authorization that satisfies ``challenge``; a new one if ``rejected`` was rejected."""
        was_tried = rejected is not None and rejected.value is not None
        is_refused = was_tried and not (rejected is not None and rejected.is_new)
        credential = cast("Credential | None", (yield FindCredential(is_refused)))
        if challenge.scheme == "basic":
            return self._basic(credential)
        if credential is not None and credential.is_token:
            return _Authorization(f"Bearer {credential.secret}", credential)
        scope = self._scope(challenge, repository, credential)
        if rejected is not None and rejected.scope is not None and rejected.token is not None:
            if rejected.is_new and rejected.scope.key == scope.key:
                return rejected  # another token of the same scope would be rejected as well
            self.tokens.drop(rejected.scope.key, rejected.token)
        token = self.tokens.find(scope.key, self._clock())
        if token is not None:
            return _Authorization(f"Bearer {token.value}", credential, scope, token)
        token = yield from self._fetch(scope)
        return _Authorization(f"Bearer {token.value}", credential, scope, token, is_new=True)

    def _fetch(self, scope: TokenScope) -> Generator[Step, Any, Token]:
        """A new token; if the credential is rejected, by the one that its source has now."""
        try:
            return cast("Token", (yield FetchToken(scope)))
        except UpstreamDenied:
            if scope.credential is None:
                raise
            reread = cast("Credential | None", (yield FindCredential(is_refused=True)))
            if reread is None or reread == scope.credential:
                raise
        return cast("Token", (yield FetchToken(replace(scope, credential=reread))))

    def _basic(self, credential: Credential | None) -> _Authorization:
        if credential is None:
            message = "requires a user and a password; set username and password for it"
            raise UpstreamDenied(self._name, message, reason="credentials")
        return _Authorization(credential.basic, credential)

    def _scope(self, challenge: Challenge, repository: str, credential: Credential | None) -> TokenScope:
        """The pull scope first, then those that the upstream named in challenges (B60)."""
        pull = f"repository:{repository}:pull"
        scopes = dict.fromkeys((pull, *challenge.scopes, *(self._scopes.get(repository) or ())))
        realm = self._realm(challenge)
        if not may_receive_credentials(realm, self._base_url, self._auth_hosts):
            credential = None
        return TokenScope(realm, challenge.service, tuple(scopes), credential)

    def _realm(self, challenge: Challenge) -> URL:
        try:
            realm = resolve_realm(challenge.realm, self._base_url)
            check_realm(realm, self._base_url, self._auth_hosts)
        except UrlRejected as error:
            message = f"token endpoint rejected: {error}"
            raise UpstreamFailed(self._name, message, reason="realm") from None
        return realm
