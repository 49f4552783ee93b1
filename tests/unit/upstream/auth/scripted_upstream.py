"""An upstream that responds to the auth flow by a script."""

import base64
from dataclasses import dataclass, field
from typing import Any

from multidict import CIMultiDict
from yarl import URL

from regmirror.errors import UpstreamError
from regmirror.upstream.auth.credentials import Credential
from regmirror.upstream.auth.flow import Authenticator, FetchToken, FindCredential, Ping, Send
from regmirror.upstream.auth.tokens import Token, use_until

BASE_URL = URL("https://registry-1.docker.io")
BEARER = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io"'
ALICE = Credential("alice", "old")
NEW_ALICE = Credential("alice", "new")
ALPINE, BUSYBOX = "library/alpine", "library/busybox"


@dataclass
class PlannedResponse:
    """A response of the upstream, as far as the auth flow reads it."""

    status: int = 200
    challenges: tuple[str, ...] = ()
    excerpt: str = ""
    is_upstream: bool = True

    @property
    def headers(self) -> Any:
        return CIMultiDict([("WWW-Authenticate", line) for line in self.challenges])


def refused(*challenges: Any) -> Any:
    return PlannedResponse(401, challenges or (BEARER,))


def basic(credential: Any) -> Any:
    encoded = base64.b64encode(f"{credential.username}:{credential.secret}".encode()).decode()
    return f"Basic {encoded}"


@dataclass
class World:
    """An upstream that responds by a script, and a clock that stands still."""

    base_url: URL = BASE_URL
    auth_hosts: list[str] = field(default_factory=list)
    credentials: list[Credential | None] = field(default_factory=lambda: [None])
    now: float = 0.0
    steps: list[object] = field(default_factory=list)
    token_errors: list[Exception | None] = field(default_factory=list)
    issued: int = 0

    def __post_init__(self) -> None:
        self.auth = Authenticator("docker.io", self.base_url, self.auth_hosts, lambda: self.now)

    def run(self, *responses: Any, repository: Any = ALPINE) -> Any:
        """The last answer of one request; the steps that it took are left in `steps`."""
        self.steps = []
        waiting = list(responses)
        flow = self.auth.request(repository)
        try:
            step = next(flow)
            while True:
                self.steps.append(step)
                try:
                    result = self.result_of(step, waiting)
                except UpstreamError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(result)
        except StopIteration as stop:
            assert waiting == []
            return stop.value

    def result_of(self, step: Any, waiting: Any) -> Any:
        match step:
            case Send() | Ping():
                return waiting.pop(0)
            case FindCredential(is_refused):
                if is_refused and len(self.credentials) > 1:
                    self.credentials.pop(0)
                return self.credentials[0]
            case FetchToken(scope):
                if self.token_errors and (error := self.token_errors.pop(0)):
                    raise error
                self.issued += 1
                token = Token(f"token-{self.issued}", use_until(self.now, 300.0))
                self.auth.tokens.put(scope.key, token)
                return token

    @property
    def sent(self) -> Any:
        return [step.authorization for step in self.steps if isinstance(step, Send)]

    @property
    def fetched(self) -> Any:
        return [step.scope for step in self.steps if isinstance(step, FetchToken)]
