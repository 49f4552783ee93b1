"""The auth flow without sockets (B26, B27, B60)."""

import pytest
from yarl import URL

from regmirror.errors import UpstreamDenied
from regmirror.upstream.auth.credentials import Credential
from regmirror.upstream.auth.flow import FetchToken, FindCredential, Ping, Send
from tests.unit.upstream.auth.scripted_upstream import (
    ALICE,
    ALPINE,
    BEARER,
    BUSYBOX,
    NEW_ALICE,
    PlannedResponse,
    World,
    basic,
    refused,
)


def test_a_registry_that_asks_for_nothing_gets_nothing() -> None:
    """B27: no token, no ping (registry.k8s.io, public repositories of quay.io)."""
    world = World(credentials=[ALICE])
    assert world.run(PlannedResponse(200)).status == 200
    assert world.sent == [None]
    assert world.steps == [Send(None)]


def test_a_challenge_is_answered_with_a_token() -> None:
    """B60: 401, token, once more."""
    world = World()
    assert world.run(refused(), PlannedResponse(200)).status == 200
    assert world.sent == [None, "Bearer token-1"]
    (scope,) = world.fetched
    assert scope.realm == URL("https://auth.docker.io/token")
    assert scope.service == "registry.docker.io"
    assert scope.scopes == (f"repository:{ALPINE}:pull",)
    assert scope.credential is None


def test_the_same_repository_uses_its_token_again() -> None:
    """B26: one token per scope."""
    world = World()
    world.run(refused(), PlannedResponse(200))
    world.run(PlannedResponse(200))
    assert world.sent == ["Bearer token-1"]
    assert world.fetched == []


def test_another_repository_asks_for_its_token_first() -> None:
    """B27: the challenge is remembered; no second 401."""
    world = World()
    world.run(refused(), PlannedResponse(200))
    world.run(PlannedResponse(200), repository=BUSYBOX)
    assert len(world.sent) == 1
    assert world.fetched[0].scopes == (f"repository:{BUSYBOX}:pull",)


def test_a_token_is_fetched_again_when_it_is_about_to_expire() -> None:
    """B26: before it expires, without a 401."""
    world = World()
    world.run(refused(), PlannedResponse(200))
    world.now = 269.9
    world.run(PlannedResponse(200))
    assert world.fetched == []
    world.now = 270.0
    world.run(PlannedResponse(200))
    assert len(world.fetched) == 1


def test_a_refused_token_is_dropped_and_replaced_once() -> None:
    """B26: 401 with a cached token: dropped, one retry."""
    world = World()
    world.run(refused(), PlannedResponse(200))
    assert world.run(refused(BEARER + ',error="invalid_token"'), PlannedResponse(200)).status == 200
    assert len(world.sent) == 2
    assert len(world.fetched) == 1


def test_a_request_is_never_sent_a_third_time() -> None:
    """B60: at most one authentication for each request."""
    world = World()
    assert world.run(refused(), refused()).status == 401
    assert len(world.sent) == 2


def test_a_token_of_this_moment_that_is_refused_is_not_replaced() -> None:
    """B28: a missing repository of Docker Hub costs one request, not two and another token."""
    world = World()
    world.run(refused(), PlannedResponse(200))
    assert world.run(refused(), repository=BUSYBOX).status == 401
    assert len(world.sent) == 1
    assert len(world.fetched) == 1
    assert FindCredential(is_refused=True) not in world.steps  # nor is a helper asked again


def test_a_token_that_somebody_else_has_replaced_is_used() -> None:
    """B26: of 40 layers refused at once, one fetches a token and all continue."""
    world = World()
    world.run(refused(), PlannedResponse(200))
    flow = world.auth.request(ALPINE)
    assert isinstance(next(flow), FindCredential)
    assert flow.send(None) == Send("Bearer token-1")
    world.run(refused(), PlannedResponse(200))  # another layer is faster
    assert world.sent == ["Bearer token-1", "Bearer token-2"]
    assert isinstance(flow.send(refused()), FindCredential)
    assert flow.send(None) == Send("Bearer token-2")


def test_scopes_named_by_the_challenge_are_added_after_ours() -> None:
    """B60: theirs may name another repository."""
    world = World()
    world.run(refused(BEARER + ',scope="repository:mirror/alpine:pull aws"'), PlannedResponse(200))
    ours = f"repository:{ALPINE}:pull"
    assert world.fetched[0].scopes == (ours, "repository:mirror/alpine:pull", "aws")


def test_the_scopes_that_a_repository_needs_are_remembered() -> None:
    """B27: the second request to it has the right token at once."""
    world = World()
    world.run(refused(BEARER + ',scope="repository:mirror/alpine:pull"'), PlannedResponse(200))
    world.run(PlannedResponse(200))
    assert world.sent == ["Bearer token-1"]
    world.run(PlannedResponse(200), repository=BUSYBOX)
    assert world.fetched[0].scopes == (f"repository:{BUSYBOX}:pull",)


def test_no_more_than_so_many_repositories_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regmirror.upstream.auth.flow._SCOPES_BYTES", 1)
    world = World()
    world.run(refused(BEARER + ',scope="aws"'), PlannedResponse(200))
    world.run(refused(BEARER + ',scope="aws"'), PlannedResponse(200), repository=BUSYBOX)
    world.run(PlannedResponse(200), repository=ALPINE)
    assert world.fetched[0].scopes == (f"repository:{ALPINE}:pull",)


def test_a_challenge_that_is_missing_is_had_from_the_ping_once() -> None:
    """Protocol 3: gcr.io sends 401 without WWW-Authenticate."""
    world = World()
    assert world.run(PlannedResponse(401), refused(), PlannedResponse(200)).status == 200
    assert [type(step) for step in world.steps] == [Send, Ping, FindCredential, FetchToken, Send]
    world.now = 1000.0
    world.run(PlannedResponse(401), repository=BUSYBOX)
    assert Ping not in [type(step) for step in world.steps]


def test_a_401_without_any_challenge_is_the_answer() -> None:
    world = World(credentials=[ALICE])
    assert world.run(PlannedResponse(401), PlannedResponse(200)).status == 401
    assert world.sent == [None]


def test_basic_is_sent_to_those_who_ask_for_it_and_from_then_on() -> None:
    """B60: Basic; private ECR."""
    world = World(credentials=[ALICE])
    world.run(refused('Basic realm="x"'), PlannedResponse(200))
    assert world.sent == [None, basic(ALICE)]
    world.run(PlannedResponse(200), repository=BUSYBOX)
    assert world.sent == [basic(ALICE)]


def test_basic_without_a_password_is_denied_and_says_what_to_do() -> None:
    """B60: never an empty user and password."""
    with pytest.raises(UpstreamDenied, match="set username and password"):
        World().run(refused('Basic realm="x"'))


def test_a_refused_password_is_read_again_and_sent_if_it_is_new() -> None:
    """B62: re-read on 401."""
    world = World(credentials=[ALICE, NEW_ALICE])
    world.run(refused('Basic realm="x"'), PlannedResponse(200))
    world.run(refused('Basic realm="x"'), PlannedResponse(200))
    assert world.sent == [basic(ALICE), basic(NEW_ALICE)]


def test_a_refused_password_that_is_still_the_same_is_not_sent_again() -> None:
    world = World(credentials=[ALICE])
    world.run(refused('Basic realm="x"'), PlannedResponse(200))
    assert world.run(refused('Basic realm="x"')).status == 401
    assert world.sent == [basic(ALICE)]


def test_a_password_refused_at_the_token_endpoint_is_read_again() -> None:
    """B62: rotated while the old one was remembered."""
    world = World(credentials=[ALICE, NEW_ALICE])
    world.token_errors = [UpstreamDenied("docker.io", "no")]
    assert world.run(refused(), PlannedResponse(200)).status == 200
    assert [scope.credential for scope in world.fetched] == [ALICE, NEW_ALICE]


def test_a_password_refused_at_the_token_endpoint_and_unchanged_is_an_error() -> None:
    """B26: it does not fall back to an anonymous token."""
    world = World(credentials=[ALICE])
    world.token_errors = [UpstreamDenied("docker.io", "no")]
    with pytest.raises(UpstreamDenied):
        world.run(refused())
    assert len(world.fetched) == 1


def test_bearer_is_preferred_to_basic() -> None:
    """B60: Artifactory offers both."""
    world = World(credentials=[ALICE])
    world.run(refused('Basic realm="x"', BEARER), PlannedResponse(200))
    assert world.sent == [None, "Bearer token-1"]
    assert world.fetched[0].credential == ALICE


def test_a_ready_token_is_used_without_asking_for_one() -> None:
    """B62: registrytoken."""
    world = World(credentials=[Credential("", "ready", is_token=True)])
    world.run(refused(), PlannedResponse(200))
    assert world.sent == [None, "Bearer ready"]
    assert world.fetched == []
