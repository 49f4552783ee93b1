"""Challenges as registries write them (B60)."""

from typing import Any

import pytest

from regmirror.upstream.auth.challenges import Challenge, parse_challenges, preferred

HUB = (
    'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",'
    'scope="repository:library/alpine:pull"'
)


def parse(*lines: Any) -> Any:
    return parse_challenges(lines)


def test_a_challenge_of_docker_hub_is_read() -> None:
    """B60: the plainest case."""
    (challenge,) = parse(HUB)
    assert challenge.scheme == "bearer"
    assert challenge.realm == "https://auth.docker.io/token"
    assert challenge.service == "registry.docker.io"
    assert challenge.scopes == ("repository:library/alpine:pull",)


def test_commas_and_spaces_in_a_quoted_scope_separate_nothing() -> None:
    """B60: quoted commas; scopes are split at spaces alone."""
    (challenge,) = parse('Bearer realm="https://r/t",scope="repository:a/b:pull,push repository:c/d:pull"')
    assert challenge.scopes == ("repository:a/b:pull,push", "repository:c/d:pull")


def test_a_scope_may_hold_a_host_with_a_port() -> None:
    """B60: a scope is not three parts between colons."""
    (challenge,) = parse('Bearer realm="r",scope="repository:reg.io:5000/a/b:pull"')
    assert challenge.scopes == ("repository:reg.io:5000/a/b:pull",)


@pytest.mark.parametrize(
    "line",
    [
        'Basic realm="x", Bearer realm="y",service="z"',
        'Bearer realm="y",service="z", Basic realm="x"',
        'Bearer realm="y",service="z" Basic realm="x"',
        'Negotiate, Basic realm="x", Bearer realm="y", service="z"',
        'Negotiate YIIZug==, Bearer realm="y",service="z",Basic realm="x"',
    ],
)
def test_several_challenges_on_a_line_are_told_apart_and_bearer_is_preferred(line: str) -> None:
    """B60: two challenges on one line, Basic before Bearer."""
    challenges = parse(line)
    assert {"basic", "bearer"} <= {challenge.scheme for challenge in challenges}
    assert preferred(challenges) == Challenge("bearer", {"realm": "y", "service": "z"})


def test_challenges_on_several_lines_are_all_read() -> None:
    """B60: one challenge for each header line."""
    assert [one.scheme for one in parse('Basic realm="x"', HUB)] == ["basic", "bearer"]


def test_unquoted_values_are_read() -> None:
    """B60: gcr.io writes service=gcr.io."""
    (challenge,) = parse("Bearer realm=https://gcr.io/v2/token,service=gcr.io")
    assert challenge.realm == "https://gcr.io/v2/token"
    assert challenge.service == "gcr.io"


def test_case_and_white_space_do_not_matter() -> None:
    """B60: scheme and keys are case-insensitive, space around = and , is allowed."""
    (challenge,) = parse('BEARER Realm = "https://r/t" ,\tSERVICE= "s" , ')
    assert challenge.scheme == "bearer"
    assert challenge.realm == "https://r/t"
    assert challenge.service == "s"


def test_missing_service_and_scope_are_empty() -> None:
    """B60: quay.io sends no scope, gcr.io may send no service."""
    (challenge,) = parse('Bearer realm="https://quay.io/v2/auth"')
    assert challenge.service == ""
    assert challenge.scopes == ()


def test_escapes_are_undone() -> None:
    (challenge,) = parse(r'Bearer realm="https://r/\"t\\"')
    assert challenge.realm == 'https://r/"t\\'


@pytest.mark.parametrize(
    "line",
    ["", " ", ",,,", "=", '"', 'realm="x"', '="x",,=', '"Bearer realm"', "\\", "Bearer realm"],
)
def test_nonsense_is_no_challenge_to_answer(line: str) -> None:
    assert preferred(parse(line)) is None


@pytest.mark.parametrize("line", ['Bearer realm="https://r/t', 'Bearer realm="https://r/t\\'])
def test_a_quote_that_is_never_closed_ends_with_the_line(line: str) -> None:
    assert parse(line)[0].realm == "https://r/t"


def test_empty_values_and_trailing_commas_are_tolerated() -> None:
    (challenge,) = parse('Bearer realm="https://r/t",service="",scope=,error=,')
    assert challenge.realm == "https://r/t"
    assert challenge.scopes == ()


def test_an_error_in_a_challenge_is_no_scheme() -> None:
    (challenge,) = parse(HUB + ',error="insufficient_scope",error_description="a, b=c"')
    assert challenge.parameters["error"] == "insufficient_scope"
    assert challenge.parameters["error_description"] == "a, b=c"


def test_unknown_schemes_are_skipped() -> None:
    assert preferred(parse('Digest realm="x"', "NTLM")) is None
    assert preferred(parse('Digest realm="x"', "Basic")) == Challenge("basic")


def test_a_bearer_challenge_without_a_realm_cannot_be_answered() -> None:
    assert preferred(parse('Bearer service="s"', 'Basic realm="x"')) == Challenge("basic", {"realm": "x"})


def test_the_first_of_two_equal_parameters_counts() -> None:
    (challenge,) = parse('Bearer realm="https://one/",realm="https://two/"')
    assert challenge.realm == "https://one/"


def test_a_hostile_line_is_read_in_bounded_time() -> None:
    """What lies beyond 8 KiB of a line is not looked at."""
    assert preferred(parse("a" * 100_000)) is None
    assert preferred(parse(", \t" * 100_000 + HUB)) is None
    assert preferred(parse("x" + " " * 100_000 + "y" + '\\"' * 100_000)) is None
