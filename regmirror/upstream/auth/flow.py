"""The token dance, as a generator without sockets (``docs/decisions/0003``).

``Authenticator.request`` yields steps and is sent their results:

    Send(authorization)      -> Answer       the request itself, redirects followed
    Ping()                   -> Answer       GET /v2/, for the challenge that another answer lacks
    Find(is_refused)         -> Credential | None
    Fetch(grant)             -> Token        shared by everybody who needs the same one

and returns the last Answer, whatever its status. Errors of a step are thrown into it and end it.
A request is sent at most twice. What was learned is kept: the challenge of the upstream, so that
the next repository asks for its token first (B27), and the scopes that a repository needs.
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

_SCOPES_BYTES: Final = 2 * 1024 * 1024  # of what upstreams named besides, in challenges
#: Private ECR answers 403 and public ECR 400 to a token that has expired, without a challenge.
_EXPIRED: Final = {
    400: re.compile(r"authorization token", re.IGNORECASE),
    403: re.compile(r"authorization token has expired", re.IGNORECASE),
}


class Answer(Protocol):
    """What a request came to. ``excerpt`` is the start of an error's body, empty for HEAD."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> MultiMapping[str]: ...
    @property
    def is_home(self) -> bool: ...
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
class Find:
    is_refused: bool


@dataclass(frozen=True, slots=True)
class Fetch:
    grant: TokenScope


Step: TypeAlias = Send | Ping | Find | Fetch
#: The result that a step is sent differs from step to step; each is cast where it arrives.
Flow: TypeAlias = Generator[Step, Any, Answer]


@dataclass(frozen=True, slots=True)
class _Pass:
    """An Authorization and where it came from; ``is_new`` if no request has used it yet."""

    authorization: str | None
    credential: Credential | None = None
    grant: TokenScope | None = None
    token: Token | None = None
    is_new: bool = False


_ANONYMOUS: Final = _Pass(None)


class Authenticator:
    """What one upstream has taught about its authentication."""

    def __init__(
        self,
        name: str,
        home: URL,
        auth_hosts: list[str],
        clock: Callable[[], float],
        tokens: TokenCache | None = None,
    ) -> None:
        self.tokens = TokenCache() if tokens is None else tokens
        self._name, self._home, self._auth_hosts, self._clock = name, home, auth_hosts, clock
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
                self._challenge = None  # it may have changed; the next request learns it anew
                raise
        answer = cast("Answer", (yield Send(used.authorization)))
        if not self._wants_authentication(answer, used):
            return answer
        challenge = preferred(parse_challenges(answer.headers.getall("WWW-Authenticate", [])))
        if challenge is None:
            challenge = yield from self._challenge_of_ping()
        if challenge is None:
            return answer
        self._learn(challenge, repository)
        again = yield from self._obtain(challenge, repository, refused=used)
        if again.authorization is None or again.authorization == used.authorization:
            return answer
        return cast("Answer", (yield Send(again.authorization)))

    def _wants_authentication(self, answer: Answer, used: _Pass) -> bool:
        if not answer.is_home:
            return False  # a storage host's 401 is not the upstream's challenge
        if answer.status == 401:
            return True
        if used.authorization is None or answer.status not in _EXPIRED:
            return False
        if answer.excerpt:
            return bool(_EXPIRED[answer.status].search(answer.excerpt))
        # The answer to a HEAD has no body that says why: believe the one that each of them sends.
        return answer.status == (403 if used.token is None else 400)

    def _challenge_of_ping(self) -> Generator[Step, Any, Challenge | None]:
        """What was learned before, else what ``/v2/`` says: gcr.io challenges nowhere else."""
        if self._challenge is None:
            answer = cast("Answer", (yield Ping()))
            return preferred(parse_challenges(answer.headers.getall("WWW-Authenticate", [])))
        return self._challenge

    def _learn(self, challenge: Challenge, repository: str) -> None:
        self._challenge = Challenge(challenge.scheme, challenge.parameters | {"scope": ""})
        self._scopes.put(repository, challenge.scopes)

    def _obtain(
        self, challenge: Challenge, repository: str, refused: _Pass | None = None
    ) -> Generator[Step, Any, _Pass]:
        """The Authorization that answers ``challenge``; after a refusal, a new one."""
        was_tried = refused is not None and refused.authorization is not None
        is_refused = was_tried and not (refused is not None and refused.is_new)
        credential = cast("Credential | None", (yield Find(is_refused)))
        if challenge.scheme == "basic":
            return self._basic(credential)
        if credential is not None and credential.is_token:
            return _Pass(f"Bearer {credential.secret}", credential)
        grant = self._grant(challenge, repository, credential)
        if refused is not None and refused.grant is not None and refused.token is not None:
            if refused.is_new and refused.grant.key == grant.key:
                return refused  # another token for the same things would be refused as well
            self.tokens.drop(refused.grant.key, refused.token)
        token = self.tokens.find(grant.key, self._clock())
        if token is not None:
            return _Pass(f"Bearer {token.value}", credential, grant, token)
        token = yield from self._fetch(grant)
        return _Pass(f"Bearer {token.value}", credential, grant, token, is_new=True)

    def _fetch(self, grant: TokenScope) -> Generator[Step, Any, Token]:
        """A new token; if the credential is refused, with what its source says now."""
        try:
            return cast("Token", (yield Fetch(grant)))
        except UpstreamDenied:
            if grant.credential is None:
                raise
            fresh = cast("Credential | None", (yield Find(is_refused=True)))
            if fresh is None or fresh == grant.credential:
                raise
        return cast("Token", (yield Fetch(replace(grant, credential=fresh))))

    def _basic(self, credential: Credential | None) -> _Pass:
        if credential is None:
            message = "asks for a user and a password; set username and password for it"
            raise UpstreamDenied(self._name, message, reason="credentials")
        return _Pass(credential.basic, credential)

    def _grant(self, challenge: Challenge, repository: str, credential: Credential | None) -> TokenScope:
        """Our own scope first, then those that the upstream named (B60)."""
        own = f"repository:{repository}:pull"
        scopes = dict.fromkeys((own, *challenge.scopes, *(self._scopes.get(repository) or ())))
        realm = self._realm(challenge)
        if not may_receive_credentials(realm, self._home, self._auth_hosts):
            credential = None
        return TokenScope(realm, challenge.service, tuple(scopes), credential)

    def _realm(self, challenge: Challenge) -> URL:
        try:
            realm = resolve_realm(challenge.realm, self._home)
            check_realm(realm, self._home, self._auth_hosts)
        except UrlRejected as error:
            message = f"names a token endpoint that {error}; it is not asked"
            raise UpstreamFailed(self._name, message, reason="realm") from None
        return realm
