"""The auth flow when it is rejected or misled (B60, B61)."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from regmirror.errors import UpstreamDenied, UpstreamFailed, UpstreamTimeout
from regmirror.upstream.auth.flow import Ping, Send
from tests.unit.upstream.auth.scripted_upstream import (
    ALICE,
    ALPINE,
    BEARER,
    NEW_ALICE,
    PlannedResponse,
    World,
    basic,
    refused,
)

EXPIRED = "Your authorization token has expired. Reauthenticate and try again."
INVALID = '{"errors":[{"code":"DENIED","message":"Your Authorization Token is invalid."}]}'


def test_credentials_do_not_go_to_a_foreign_realm() -> None:
    """B61: the token is asked for anonymously."""
    world = World(credentials=[ALICE])
    world.run(refused('Bearer realm="https://auth.evil.example/token"'), PlannedResponse(200))
    assert world.fetched[0].credential is None


def test_credentials_go_to_a_listed_realm() -> None:
    """B61: auth_hosts."""
    world = World(credentials=[ALICE], auth_hosts=["login.corp.example"])
    world.run(refused('Bearer realm="https://login.corp.example/token"'), PlannedResponse(200))
    assert world.fetched[0].credential == ALICE


@pytest.mark.parametrize(
    "realm",
    [
        "http://auth.docker.io/token",
        "https://169.254.169.254/latest/meta-data",
        "https://127.0.0.1:8080/token",
        "https://[::1]/token",
        "https://localhost/token",
    ],
)
def test_a_realm_that_must_not_be_asked_is_refused_without_a_connection(realm: str) -> None:
    """B61: CVE-2026-33540."""
    world = World(credentials=[ALICE])
    with pytest.raises(UpstreamFailed, match="token endpoint") as caught:
        world.run(refused(f'Bearer realm="{realm}"'))
    assert caught.value.reason == "realm"
    assert world.fetched == []


def test_a_challenge_of_a_storage_host_is_not_answered() -> None:
    """B61: a redirect's target may not ask for our credentials."""
    world = World(credentials=[ALICE])
    response = PlannedResponse(401, (BEARER,), is_upstream=False)
    assert world.run(response) is response
    assert world.fetched == []


@pytest.mark.parametrize(("status", "excerpt"), [(403, EXPIRED), (400, EXPIRED), (400, INVALID)])
def test_an_expired_token_that_is_called_otherwise_is_replaced_once(status: int, excerpt: str) -> None:
    """B60: ECR's 403 and public ECR's 400."""
    world = World()
    world.run(refused(), PlannedResponse(200))
    assert world.run(PlannedResponse(status, excerpt=excerpt), PlannedResponse(200)).status == 200
    assert len(world.fetched) == 1
    assert (
        world.run(PlannedResponse(status, excerpt=excerpt), PlannedResponse(status, excerpt=excerpt)).status
        == status
    )


@pytest.mark.parametrize(
    ("status", "excerpt"), [(403, "denied"), (400, "NAME_INVALID"), (404, EXPIRED), (500, EXPIRED)]
)
def test_other_refusals_are_the_answer(status: int, excerpt: str) -> None:
    """B60: other 403 and 400 are not."""
    world = World()
    world.run(refused(), PlannedResponse(200))
    assert world.run(PlannedResponse(status, excerpt=excerpt)).status == status
    assert world.fetched == []


def test_a_400_to_a_head_counts_as_an_expired_token_once() -> None:
    """B60: the answer to a HEAD has no body that says so."""
    world = World()
    world.run(refused(), PlannedResponse(200))
    assert world.run(PlannedResponse(400), PlannedResponse(200)).status == 200
    assert world.run(PlannedResponse(403)).status == 403


def test_a_403_to_a_head_makes_a_password_be_read_again() -> None:
    """B60: ECR's password is good for twelve hours."""
    world = World(credentials=[ALICE, NEW_ALICE])
    world.run(refused('Basic realm="x"'), PlannedResponse(200))
    assert world.run(PlannedResponse(403), PlannedResponse(200)).status == 200
    assert world.sent == [basic(ALICE), basic(NEW_ALICE)]
    assert world.run(PlannedResponse(403)).status == 403


def test_a_refusal_of_an_anonymous_request_is_no_expired_token() -> None:
    world = World()
    assert world.run(PlannedResponse(403, excerpt=EXPIRED)).status == 403
    assert world.steps == [Send(None)]


def test_a_failed_token_endpoint_is_forgotten_with_its_challenge() -> None:
    """B60: the next request learns the challenge anew, for the endpoint may have moved."""
    world = World()
    world.run(refused(), PlannedResponse(200))
    world.now = 1000.0
    world.token_errors = [UpstreamTimeout("docker.io", "no answer")]
    with pytest.raises(UpstreamTimeout):
        world.run()
    moved = 'Bearer realm="https://new.docker.io/token"'
    world.run(refused(moved), PlannedResponse(200))
    assert world.sent[0] is None
    assert world.fetched[0].realm == URL("https://new.docker.io/token")


def test_a_token_endpoint_that_moved_is_learned_from_the_next_challenge() -> None:
    world = World()
    world.run(refused(), PlannedResponse(200))
    world.run(refused('Bearer realm="https://new.docker.io/token"'), PlannedResponse(200))
    assert world.fetched[0].realm == URL("https://new.docker.io/token")
    world.run(PlannedResponse(200))
    assert world.fetched == []


def test_a_change_from_basic_to_bearer_is_followed() -> None:
    world = World(credentials=[ALICE])
    world.run(refused('Basic realm="x"'), PlannedResponse(200))
    world.run(refused(), PlannedResponse(200))
    assert world.sent == [basic(ALICE), "Bearer token-1"]


def test_no_step_shows_a_secret() -> None:
    """B62: repr of every step."""
    world = World(credentials=[ALICE])
    world.run(refused(), PlannedResponse(200))
    shown = repr(world.steps)
    assert "token-1" not in shown
    assert "'old'" not in shown
    assert "Bearer" in shown


CHALLENGES = st.lists(
    st.sampled_from([BEARER, 'Basic realm="x"', 'Bearer realm="http://127.0.0.1/t"', "Negotiate"]),
    max_size=3,
)


@given(
    st.lists(
        st.tuples(st.sampled_from([200, 400, 401, 403, 404, 500]), CHALLENGES),
        min_size=3,
        max_size=3,
    ),
    st.booleans(),
)
def test_a_request_is_sent_at_most_twice_for_any_responses(script: Any, has_credential: Any) -> None:
    """B60: no loop, from a cold and from a warm start."""
    world = World(credentials=[ALICE if has_credential else None])
    for _ in range(2):
        responses = [PlannedResponse(status, tuple(lines), EXPIRED) for status, lines in script]
        random.Random(0).shuffle(responses)
        flow = world.auth.request(ALPINE)
        sent = pings = 0
        try:
            step = next(flow)
            while True:
                sent += isinstance(step, Send)
                pings += isinstance(step, Ping)
                step = flow.send(world.result_of(step, responses))
        except (StopIteration, UpstreamDenied, UpstreamFailed):
            pass
        assert sent <= 2
        assert pings <= 1
