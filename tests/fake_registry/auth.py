"""Access to a fake registry: none needed, Basic, or Bearer with a token endpoint."""

import base64
import binascii
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from tests.fake_registry.request_log import RecordedRequest
from tests.fake_registry.response import PlannedResponse, error_response, json_response
from tests.fake_registry.sources import InMemory

Mode = Literal["none", "basic", "bearer"]
Expired = Literal["invalid_token", "ecr", "public-ecr"]


@dataclass
class Token:
    """What an opaque token stands for."""

    user: str | None
    scopes: frozenset[str]
    expires_at: float
    revoked: bool = False


class Auth:
    """Challenges, tokens and passwords; every attribute may be changed while serving.

    challenge       lines of WWW-Authenticate instead of the regular one, with {realm}, {service} and
                    {scope} filled in; an empty list sends none
    realm           where tokens are had; None: /token of this server
    tokens          every token issued; give another server's dictionary to accept its tokens
    token_lifetime  seconds, by `clock`
    token_body      members to change in the token response (None drops one), or a function from the
                    regular members to the body that is sent instead: JSON, or bytes unchanged
    token_post      False: POST to the token endpoint is 405
    identity_tokens refresh tokens, and whose they are
    anonymous       whether a token may be had without credentials
    restricted      repositories that only some users may pull: {"team/app": {"alice"}}
    deny_at_token   True: the token endpoint responds 403 for what may not be pulled (ghcr.io);
                    False: it issues a token without that scope (Docker Hub)
    expired         how an expired or revoked token or password is rejected: 401 with invalid_token,
                    403 as by private ECR, 400 as by public ECR
    """

    url: str

    def __init__(self, mode: Mode, users: Mapping[str, str] | None = None) -> None:
        self.auth = mode
        self.users = dict(users or {})
        self.challenge: list[str] | None = None
        self.realm: str | None = None
        self.service = "fake-registry"
        self.tokens: dict[str, Token] = {}
        self.token_lifetime = 300.0
        self.token_body: Mapping[str, Any] | Callable[[dict[str, Any]], Any] | None = None
        self.token_post = True
        self.identity_tokens: dict[str, str] = {}
        self.anonymous = True
        self.restricted: dict[str, set[str]] = {}
        self.deny_at_token = False
        self.expired: Expired = "invalid_token"
        self.clock: Callable[[], float] = time.monotonic
        self._expired_passwords: set[tuple[str, str]] = set()

    # --- what tests do ---

    def revoke_tokens(self) -> None:
        """Every token issued so far counts as expired."""
        for token in self.tokens.values():
            token.revoked = True

    def change_password(self, user: str, password: str) -> None:
        """The old password counts as expired from now on."""
        self._expired_passwords.add((user, self.users[user]))
        self.users[user] = password

    def issue_token(self, *scopes: str, user: str | None = None) -> str:
        """A token that is good for these scopes, as the endpoint would have issued it."""
        value = secrets.token_urlsafe(24)
        self.tokens[value] = Token(user, frozenset(scopes), self.clock() + self.token_lifetime)
        return value

    # --- the registry's side ---

    def reject(self, request: RecordedRequest) -> PlannedResponse | None:
        """None for a permitted request, else its error response."""
        if self.auth == "none":
            return None
        if self.auth == "basic":
            return self._reject_password(request)
        scheme, _, value = (request.authorization or "").partition(" ")
        token = self.tokens.get(value) if scheme.lower() == "bearer" else None
        if token is None:
            return self._unauthorized(request, "invalid_token" if value else None)
        if token.revoked or self.clock() >= token.expires_at:
            return self._reject_expired(request)
        scope = scope_of(request)
        if scope and scope not in token.scopes:
            return self._unauthorized(request, "insufficient_scope")
        return None

    def _reject_password(self, request: RecordedRequest) -> PlannedResponse | None:
        credentials = basic_credentials(request)
        if credentials in self._expired_passwords:
            return self._reject_expired(request)
        if credentials is None or self.users.get(credentials[0]) != credentials[1]:
            return self._unauthorized(request)
        if not self._may_pull(credentials[0], request.repository):
            return error_response(403, "DENIED")
        return None

    def _reject_expired(self, request: RecordedRequest) -> PlannedResponse:
        if self.expired == "invalid_token":
            return self._unauthorized(request, "invalid_token")
        status = 403 if self.expired == "ecr" else 400
        message = "Your authorization token has expired. Reauthenticate and try again."
        return error_response(status, "DENIED", message)

    def _unauthorized(self, request: RecordedRequest, error: str | None = None) -> PlannedResponse:
        response = error_response(401, "UNAUTHORIZED", "authentication required")
        values = {
            "{realm}": self.realm or f"{self.url}/token",
            "{service}": self.service,
            "{scope}": scope_of(request) or "",
        }
        lines = self._regular_challenge(request, error) if self.challenge is None else self.challenge
        for line in lines:
            filled = re.sub(r"\{\w+\}", lambda found: values.get(found[0], found[0]), line)
            response.headers.add("WWW-Authenticate", filled)
        return response

    def _regular_challenge(self, request: RecordedRequest, error: str | None) -> list[str]:
        if self.auth == "basic":
            return ['Basic realm="{service}"']
        scope = ',scope="{scope}"' if scope_of(request) else ""
        because = f',error="{error}"' if error else ""
        return ['Bearer realm="{realm}",service="{service}"' + scope + because]

    def _may_pull(self, user: str | None, repository: str | None) -> bool:
        allowed = self.restricted.get(repository or "")
        return allowed is None or user in allowed

    # --- the token endpoint ---

    def token_response(self, request: RecordedRequest) -> PlannedResponse:
        """The response to GET, and to POST with a refresh token or a password."""
        if request.method not in ("GET", "POST") or (request.method == "POST" and not self.token_post):
            return error_response(405, "UNSUPPORTED", headers={"Allow": "GET"})
        known, user = self._authenticate(request)
        if not known:
            return error_response(401, "UNAUTHORIZED", "incorrect username or password")
        granted = [granted for scope in request.scopes if (granted := self._grant(user, scope))]
        if self.deny_at_token and len(granted) < len(request.scopes):
            return error_response(403, "DENIED", "requested access to the resource is denied")
        members: dict[str, Any] = {
            "token": self.issue_token(*granted, user=user),
            "expires_in": int(self.token_lifetime),
            "issued_at": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        }
        members["access_token"] = members["token"]
        if user and request.query.get("offline_token") == "true":
            members["refresh_token"] = self._identity_token(user)
        return self._token_body(members)

    def _authenticate(self, request: RecordedRequest) -> tuple[bool, str | None]:
        """Whether the client may have a token, and its user; None is anonymous."""
        form = request.form
        if form.get("grant_type") == "refresh_token":
            user = self.identity_tokens.get(form.get("refresh_token", ""))
            return user is not None, user
        if form.get("grant_type") == "password":
            credentials: tuple[str, str] | None = (
                form.get("username", ""),
                form.get("password", ""),
            )
        elif request.authorization is None:
            return self.anonymous, None
        else:
            credentials = basic_credentials(request)
        if credentials is None or self.users.get(credentials[0]) != credentials[1]:
            return False, None
        return True, credentials[0]

    def _grant(self, user: str | None, scope: str) -> str | None:
        """The scope as far as it is granted: pulling what this user may see, nothing else."""
        resource, _, actions = scope.rpartition(":")
        kind, _, name = resource.partition(":")
        if kind == "repository":
            may = "pull" in actions.split(",") and self._may_pull(user, name)
            return f"{resource}:pull" if may else None
        return scope

    def _identity_token(self, user: str) -> str:
        value = secrets.token_urlsafe(24)
        self.identity_tokens[value] = user
        return value

    def _token_body(self, members: dict[str, Any]) -> PlannedResponse:
        if callable(self.token_body):
            body = self.token_body(members)
        else:
            changed = members | dict(self.token_body or {})
            body = {name: value for name, value in changed.items() if value is not None}
        if isinstance(body, bytes):
            return PlannedResponse.of(200, InMemory(body), {"Content-Type": "application/json"})
        return json_response(200, body)


def scope_of(request: RecordedRequest) -> str | None:
    """The scope that a request needs; None for a ping, which any token opens."""
    if request.kind == "catalog":
        return "registry:catalog:*"
    return f"repository:{request.repository}:pull" if request.repository else None


def basic_credentials(request: RecordedRequest) -> tuple[str, str] | None:
    """User and password of a Basic header, None where there is none or it is malformed."""
    scheme, _, value = (request.authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return (user, password) if colon else None
