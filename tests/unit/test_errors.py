"""The tree of errors: each has a code of the specification and a status, and no text has a secret."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from regmirror import errors
from regmirror.errors import ConfigError, MetadataUnavailable, RangeInvalid, RegistryError, UpstreamError


def tree(kind: type[Exception]) -> Iterator[type[Exception]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


@pytest.mark.parametrize("kind", [*tree(RegistryError)], ids=lambda kind: kind.__name__)
def test_every_error_of_the_api_is_drawn_with_its_status(kind: type[RegistryError]) -> None:
    assert kind.code == kind.code.upper()
    assert 400 <= kind.status < 600
    if kind is not RegistryError:
        drawing = errors.__doc__ or ""
        line = next(line for line in drawing.splitlines() if re.search(rf"\b{kind.__name__}\b", line))
        after = line[line.index(kind.__name__) + len(kind.__name__) :]
        assert kind is UpstreamError or after.split()[0] == str(kind.status)


def test_an_error_of_an_upstream_begins_with_its_name() -> None:
    error = UpstreamError("docker.io", "has no library/nope", reason="missing", retry_after=3)
    assert str(error) == error.message == "docker.io: has no library/nope"
    assert (error.upstream, error.reason, error.retry_after) == ("docker.io", "missing", 3)
    assert (error.is_elsewhere, error.is_definite) == (False, False)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("https://user:word@host", "upstreams.a.url = 'https://***@host': is wrong"),
        (5, "upstreams.a.url = 5: is wrong"),
        (None, "upstreams.a.url: is wrong"),
    ],
)
def test_an_error_of_the_configuration_has_key_value_and_reason_without_a_password(
    value: object, text: str
) -> None:
    assert str(ConfigError("upstreams.a.url", value, "is wrong")) == text


def test_some_errors_carry_what_their_response_needs() -> None:
    assert RangeInvalid("beyond the end", 7).size == 7
    error = MetadataUnavailable()
    assert (error.status, error.retry_after) == (503, 1)
    assert str(error) == "the database does not respond; try again"
