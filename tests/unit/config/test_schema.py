"""Units, defaults and what a value must look like."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from regmirror.config.schema import (
    BUILT_IN,
    Config,
    Upstream,
    format_duration,
    format_size,
    parse_duration,
    split_address,
    upstream_url,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        (0, 0),
        ("0s", 0),
        ("500ms", 0.5),
        ("30s", 30),
        ("5m", 300),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("24h", 86400),
        ("7d", 604800),
        ("2w", 1209600),
        (" 5m ", 300),
    ],
)
def test_durations(text: str | int, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "5", 5, "5 m", "-5m", "m", "5min", "5M", "1e3s", "inf", "nan", True, None]
)
def test_a_malformed_duration_is_rejected(text: object) -> None:
    """B80: a number without its unit could mean anything."""
    with pytest.raises(ValueError, match="write a duration as 30s"):
        parse_duration(text)


@given(st.integers(0, 10**9))
def test_a_duration_that_is_written_can_be_parsed_again(seconds: int) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        (0, 0),
        ("1024", 1024),
        (1024, 1024),
        ("500MB", 500 * 10**6),
        ("50GB", 50 * 10**9),
        ("200MiB", 200 * 2**20),
        ("1.5GiB", 3 * 2**29),
        ("1tib", 2**40),
        ("10k", 10_000),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert Config.model_validate({"storage": {"max_size": text}}).storage.max_size == size


@pytest.mark.parametrize("text", ["", "lots", "-1GB", "5XB", "1e9", "5 G B", True, None, [], "5ib"])
def test_a_malformed_size_is_rejected(text: object) -> None:
    """B80: what could be misread is refused."""
    with pytest.raises(ValidationError):
        Config.model_validate({"storage": {"max_size": text}})


@given(st.integers(0, 2**50))
def test_a_size_that_is_written_can_be_parsed_again(size: int) -> None:
    assert Config.model_validate({"storage": {"max_size": format_size(size)}}).storage.max_size == size


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0.0.0.0:5000", ("0.0.0.0", 5000)),
        (":5000", ("0.0.0.0", 5000)),
        ("[::1]:5000", ("::1", 5000)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert split_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "5000", "localhost", "localhost:", "localhost:http", "a:65536", "a:-1", "a:²"]
)
def test_a_malformed_address_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="write an address as host:port"):
        split_address(text)


def test_the_built_in_upstreams_serve_without_configuration() -> None:
    config = Config()

    assert list(config.enabled_upstreams()) == list(BUILT_IN)
    assert set(BUILT_IN) == {
        "docker.io",
        "ghcr.io",
        "quay.io",
        "gcr.io",
        "registry.k8s.io",
        "mcr.microsoft.com",
        "public.ecr.aws",
        "nvcr.io",
        "registry.gitlab.com",
    }
    assert config.default_upstream == "docker.io"


@pytest.mark.parametrize(
    "alias", ["docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"]
)
def test_the_names_of_docker_hub_are_one_upstream(alias: str) -> None:
    """B58: by whatever name, it is one cache."""
    assert Config().known_hosts()[alias] == "docker.io"


def test_a_table_of_a_built_in_name_overrides_its_keys() -> None:
    config = Config.model_validate(
        {"upstreams": {"docker.io": {"username": "me"}, "ghcr.io": {"enabled": False}, "my.reg": {}}}
    )

    assert config.upstreams["docker.io"].username == "me"
    assert config.upstreams["docker.io"].url == "https://registry-1.docker.io"
    assert "ghcr.io" not in config.known_hosts()
    assert config.known_hosts()["my.reg"] == "my.reg"


@pytest.mark.parametrize(
    ("table", "url"),
    [
        ({}, "https://reg.io"),
        ({"insecure": True}, "http://reg.io"),
        ({"url": "https://other:5000/"}, "https://other:5000"),
        ({"url": "http://other", "insecure": False}, "http://other"),
    ],
)
def test_the_base_url_of_an_upstream(table: dict[str, Any], url: str) -> None:
    assert upstream_url("reg.io", Upstream(**table)) == url


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Config().default_upstream = "ghcr.io"  # type: ignore[misc]


def test_secrets_cannot_be_printed() -> None:
    """B62: not by repr, not by str, not as JSON."""
    config = Config.model_validate({"upstreams": {"docker.io": {"password": "hunter2"}}})

    assert "hunter2" not in repr(config)
    assert "hunter2" not in str(config)
    assert "hunter2" not in config.model_dump_json()
