"""Which entry of Docker's configuration file belongs to a repository."""

import base64
import json
from typing import Any

import pytest
from yarl import URL

from regmirror.upstream.auth.docker_config import HUB_KEY, Entry, Keys, Unusable, parse_config, server_keys

QUAY = URL("https://quay.io")
HUB = URL("https://registry-1.docker.io")


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def entry_of(auths: dict[str, Any], keys: Keys) -> Entry | None:
    return parse_config(json.dumps({"auths": auths}).encode()).entry(keys)


def test_the_longest_namespace_comes_first() -> None:
    """B62: podman's namespaces."""
    keys = server_keys("quay.io", QUAY, "team/app")
    assert keys.places == ("quay.io/team/app", "quay.io/team", "quay.io")
    assert keys.servers == ("quay.io",)


def test_docker_hub_has_its_own_key() -> None:
    keys = server_keys("docker.io", HUB, "library/alpine")
    assert keys.servers == (HUB_KEY,)
    assert "index.docker.io" in keys.places


@pytest.mark.parametrize(
    ("url", "place"), [("https://[::1]:5000", "[::1]:5000"), ("https://reg.test:5000", "reg.test:5000")]
)
def test_a_port_and_brackets_belong_to_the_key(url: str, place: str) -> None:
    assert place in server_keys("mine", URL(url), "a").places


@pytest.mark.parametrize("key", ["quay.io", "https://quay.io", "https://Quay.io/v1/", "quay.io/v2"])
def test_the_spellings_of_a_host_are_one_key(key: str) -> None:
    keys = server_keys("quay.io", QUAY, "a")
    assert entry_of({key: {"auth": encoded("alice:s3cret")}}, keys) == Entry("alice", "s3cret")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"username": "alice", "password": "p"}, Entry("alice", "p")),
        ({"auth": encoded("alice:a:b").rstrip("=")}, Entry("alice", "a:b")),
        ({"auth": encoded("alice:p\0\0")}, Entry("alice", "p")),
        ({"identitytoken": "i"}, Entry("", identity_token="i")),
        ({"auth": encoded("<token>:i")}, Entry("<token>", identity_token="i")),
        ({"registrytoken": " r "}, Entry("", registry_token="r")),
        ({"auth": ""}, None),
    ],
)
def test_an_entry_has_one_secret(raw: dict[str, Any], expected: Entry | None) -> None:
    assert entry_of({"quay.io": raw}, server_keys("quay.io", QUAY, "a")) == expected


@pytest.mark.parametrize(
    "raw",
    [
        "text",
        {"auth": "%%%"},
        {"auth": encoded("no colon")},
        {"username": 7},
        {"registrytoken": "two words"},
    ],
)
def test_a_malformed_entry_is_an_error_without_its_content(raw: Any) -> None:
    """B62."""
    with pytest.raises(Unusable) as caught:
        entry_of({"quay.io": raw}, server_keys("quay.io", QUAY, "a"))
    assert "two words" not in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"auths": []}'.replace(b"[]", b"[1]")])
def test_a_malformed_file_is_an_error(content: bytes) -> None:
    with pytest.raises(Unusable):
        parse_config(content)


def test_the_helper_of_a_registry_goes_before_the_store() -> None:
    content = json.dumps({"credHelpers": {"quay.io": "own"}, "credsStore": "store"}).encode()
    document = parse_config(content)
    assert list(document.helpers(server_keys("quay.io", QUAY, "a"))) == [("own", "quay.io")]
    assert list(document.helpers(server_keys("docker.io", HUB, "a"))) == [("store", HUB_KEY)]
