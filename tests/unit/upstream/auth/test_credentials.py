"""Where the user and password of an upstream come from, and that they show nowhere (B62)."""

import asyncio
import base64
import json
import os
import traceback
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from regmirror.config.schema import Upstream
from regmirror.errors import UpstreamFailed
from regmirror.upstream.auth.credential_helpers import HelperFailed
from regmirror.upstream.auth.credentials import (
    HELPER_MAX_AGE,
    Credential,
    CredentialSource,
    basic_authorization,
    credential_source,
)

HUB = ("docker.io", URL("https://registry-1.docker.io"))
QUAY = ("quay.io", URL("https://quay.io"))
SECRET = "s3cret:with colon"


def auth(user: Any, password: Any) -> Any:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


class Helpers:
    """Credential helpers that answer from a table and remember what they were asked."""

    def __init__(self, **told: Any) -> None:
        self.told = told
        self.asked: list[tuple[str, str]] = []

    async def __call__(self, helper: Any, server: Any) -> Any:
        self.asked.append((helper, server))
        response = self.told.get(helper)
        if isinstance(response, Exception):
            raise response
        return response.get(server) if isinstance(response, dict) else response


class Clock:
    now = 0.0

    def __call__(self) -> Any:
        return self.now


async def secret_of(source: CredentialSource, repository: str, *, is_refused: bool = False) -> str:
    """The secret of the credential that a source finds."""
    credential = await source.find(repository, is_refused=is_refused)
    assert credential is not None
    return credential.secret


@pytest.fixture
def docker_config(tmp_path: Path) -> Any:
    """Write a config.json and return the source that reads it."""
    path = tmp_path / "config.json"

    def make(document: Any, place: tuple[str, URL] = HUB, helpers: Any = None, clock: Any = None) -> Any:
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        config = Upstream(docker_config=str(path))
        return credential_source(*place, config, clock=clock or Clock(), run=helpers or Helpers())

    make.path = path  # type: ignore[attr-defined]
    return make


async def test_nothing_configured_means_anonymous() -> None:
    source = credential_source(*HUB, Upstream())
    assert await source.find("library/alpine") is None


async def test_user_and_password_of_the_configuration() -> None:
    source = credential_source(*HUB, Upstream(username="alice", password=SECRET))
    assert await source.find("library/alpine") == Credential("alice", SECRET)


async def test_a_password_file_is_read_without_its_line_end(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_bytes(b" pass word \r\n")
    source = credential_source(*HUB, Upstream(username="alice", password_file=str(path)))
    assert await source.find("a") == Credential("alice", " pass word ")


async def test_a_password_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """B62: re-read on change; a rename over it and an edit in place."""
    path = tmp_path / "password"
    path.write_text("one")
    source = credential_source(*HUB, Upstream(username="alice", password_file=str(path)))
    assert await secret_of(source, "a") == "one"
    other = tmp_path / "new"
    other.write_text("two")
    other.replace(path)
    assert await secret_of(source, "a") == "two"
    path.write_text("three")
    assert await secret_of(source, "a") == "three"


async def test_a_refused_password_is_read_again_even_if_the_file_looks_unchanged(tmp_path: Path) -> None:
    """B62: re-read on 401."""
    path = tmp_path / "password"
    path.write_text("one")
    source = credential_source(*HUB, Upstream(username="alice", password_file=str(path)))
    await source.find("a")
    status = path.stat()
    path.write_text("two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert await secret_of(source, "a") == "one"
    assert await secret_of(source, "a", is_refused=True) == "two"


async def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "password").write_text("one")
    source = credential_source(*HUB, Upstream(username="alice", password_file="~/password"))
    assert await secret_of(source, "a") == "one"


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe"])
async def test_a_password_file_that_cannot_be_used_is_an_error_that_names_it(
    tmp_path: Path, content: bytes | None
) -> None:
    """It must not quietly become anonymous: that changes rate limits."""
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    source = credential_source(*HUB, Upstream(username="alice", password_file=str(path)))
    with pytest.raises(UpstreamFailed, match="password_file") as caught:
        await source.find("a")
    assert str(path) in str(caught.value)
    assert caught.value.reason == "credentials"


@pytest.mark.parametrize(
    "key",
    [
        "https://index.docker.io/v1/",
        "https://index.docker.io/v1",
        "https://index.docker.io/v2/",
        "index.docker.io",
        "docker.io",
        "registry-1.docker.io",
        "https://registry-1.docker.io",
        "https://registry-1.docker.io/",
        "Docker.IO",
    ],
)
async def test_docker_hub_is_found_under_all_its_names(docker_config: Any, key: str) -> None:
    source = docker_config({"auths": {key: {"auth": auth("alice", SECRET)}}})
    assert await source.find("library/alpine") == Credential("alice", SECRET)


@pytest.mark.parametrize("key", ["quay.io", "https://quay.io", "https://quay.io/v1/", "QUAY.io"])
async def test_other_registries_are_found_by_host(docker_config: Any, key: str) -> None:
    source = docker_config({"auths": {key: {"auth": auth("alice", "pw")}}}, QUAY)
    assert await source.find("team/app") == Credential("alice", "pw")


async def test_a_registry_is_found_by_the_host_of_its_url_with_its_port(docker_config: Any) -> None:
    place = ("corp", URL("http://reg.corp.example:5000"))
    source = docker_config({"auths": {"reg.corp.example:5000": {"auth": auth("a", "pw")}}}, place)
    assert await source.find("app") == Credential("a", "pw")


async def test_the_password_of_docker_hub_is_not_for_others(docker_config: Any) -> None:
    document = {"auths": {"https://index.docker.io/v1/": {"auth": auth("alice", "pw")}}}
    assert await docker_config(document, QUAY).find("team/app") is None


async def test_the_longest_namespace_counts(docker_config: Any) -> None:
    """podman's auth.json."""
    document = {
        "auths": {
            "quay.io": {"auth": auth("host", "pw")},
            "quay.io/team": {"auth": auth("team", "pw")},
            "quay.io/team/app": {"auth": auth("app", "pw")},
        }
    }
    source = docker_config(document, QUAY)
    assert (await source.find("team/app")).username == "app"
    assert (await source.find("team/app/sub")).username == "app"
    assert (await source.find("team/application")).username == "team"
    assert (await source.find("other/app")).username == "host"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"username": "alice", "password": "pw"}, Credential("alice", "pw")),
        ({"auth": auth("alice", "a:b:c")}, Credential("alice", "a:b:c")),
        ({"auth": auth("alice", "pw\0\0")}, Credential("alice", "pw")),
        ({"auth": auth("alice", "pw").rstrip("=")}, Credential("alice", "pw")),
        ({"identitytoken": "i", "auth": auth("u", "")}, Credential("u", "i", is_identity=True)),
        ({"auth": auth("<token>", "i")}, Credential("<token>", "i", is_identity=True)),
        ({"registrytoken": "r"}, Credential("", "r", is_token=True)),
        ({}, None),
        ({"email": "a@example.com"}, None),
    ],
)
async def test_every_form_of_an_entry(docker_config: Any, entry: Any, expected: Credential | None) -> None:
    source = docker_config({"auths": {"https://index.docker.io/v1/": entry}})
    assert await source.find("library/alpine") == expected


async def test_a_helper_of_the_registry_beats_the_store_and_the_file(docker_config: Any) -> None:
    document = {
        "auths": {"quay.io": {"auth": auth("file", "pw")}},
        "credsStore": "store",
        "credHelpers": {"quay.io": "own"},
    }
    helpers = Helpers(own=("own", "pw"), store=("store", "pw"))
    source = docker_config(document, QUAY, helpers)
    assert await source.find("team/app") == Credential("own", "pw")
    assert helpers.asked == [("own", "quay.io")]


async def test_the_store_beats_the_file_and_the_file_is_the_last(docker_config: Any) -> None:
    document = {"auths": {"quay.io": {"auth": auth("file", "pw")}}, "credsStore": "store"}
    source = docker_config(document, QUAY, Helpers(store=("store", "pw")))
    assert await source.find("team/app") == Credential("store", "pw")
    source = docker_config(document, QUAY, Helpers(store=None))
    assert await source.find("team/app") == Credential("file", "pw")


async def test_the_store_is_asked_for_docker_hub_by_its_old_address(docker_config: Any) -> None:
    helpers = Helpers(store={"https://index.docker.io/v1/": ("<token>", "refresh")})
    source = docker_config({"credsStore": "store"}, HUB, helpers)
    assert await source.find("a") == Credential("<token>", "refresh", is_identity=True)


async def test_what_a_helper_told_is_remembered_for_a_while(docker_config: Any) -> None:
    """ECR's helper takes seconds; its password rotates."""
    clock, helpers = Clock(), Helpers(store=("a", "one"))
    source = docker_config({"credsStore": "store"}, QUAY, helpers, clock)
    assert await secret_of(source, "a") == "one"
    helpers.told["store"] = ("a", "two")
    assert await secret_of(source, "a") == "one"
    clock.now = HELPER_MAX_AGE
    assert await secret_of(source, "a") == "two"


async def test_a_refused_password_is_asked_of_the_helper_again(docker_config: Any) -> None:
    """B62."""
    helpers = Helpers(store=("a", "one"))
    source = docker_config({"credsStore": "store"}, QUAY, helpers)
    await source.find("a")
    helpers.told["store"] = ("a", "two")
    assert await secret_of(source, "a", is_refused=True) == "two"


async def test_forty_layers_ask_a_helper_once(docker_config: Any) -> None:
    """B62: a process for each would be forty processes."""
    response = asyncio.Event()
    asked = []

    async def ask(helper: Any, server: Any) -> Any:
        asked.append(server)
        await response.wait()
        return "a", "pw"

    source = docker_config({"credsStore": "store"}, QUAY, ask)
    layers = [asyncio.ensure_future(source.find("a")) for _ in range(40)]
    await asyncio.sleep(0)
    response.set()
    assert await asyncio.gather(*layers) == [Credential("a", "pw")] * 40
    assert asked == ["quay.io"]


async def test_closing_ends_what_a_helper_is_asked(docker_config: Any) -> None:
    async def never(helper: Any, server: Any) -> None:
        await asyncio.Event().wait()

    source = docker_config({"credsStore": "store"}, QUAY, never)
    waiting = asyncio.ensure_future(source.find("a"))
    await asyncio.sleep(0)
    await source.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_helper_that_fails_is_an_error_that_names_it(docker_config: Any) -> None:
    helpers = Helpers(ecr=HelperFailed("ended with status 1"))
    source = docker_config({"credHelpers": {"quay.io": "ecr"}}, QUAY, helpers)
    with pytest.raises(UpstreamFailed, match=r"docker-credential-ecr.*ended with status 1"):
        await source.find("a")


async def test_a_changed_file_counts_at_once(docker_config: Any) -> None:
    source = docker_config({"auths": {"quay.io": {"auth": auth("a", "one")}}}, QUAY)
    assert await secret_of(source, "x") == "one"
    docker_config.path.write_text(json.dumps({"auths": {"quay.io": {"auth": auth("a", "new")}}}))
    assert await secret_of(source, "x") == "new"


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '"s3cret"',
        '{"auths": ["s3cret"]}',
        '{"auths": {"docker.io": "s3cret"}}',
        '{"auths": {"docker.io": {"auth": "s3cret!!"}}}',
        '{"auths": {"docker.io": {"auth": 7}}}',
        '{"auths": {"docker.io": {"auth": "' + base64.b64encode(b"s3cret").decode() + '"}}}',
        '{"auths": {"docker.io": {"registrytoken": "s3cret\\r\\nX: y"}}}',
    ],
)
async def test_a_broken_file_is_an_error_that_names_it_and_not_its_content(
    docker_config: Any, content: Any
) -> None:
    """B62: configured but unusable is never anonymous, and shows nothing."""
    source = docker_config(content)
    with pytest.raises(UpstreamFailed, match="docker_config") as caught:
        await source.find("library/alpine")
    assert str(docker_config.path) in str(caught.value)
    text = "".join(traceback.format_exception(caught.value))
    assert "s3cret" not in text
    assert base64.b64encode(b"s3cret").decode() not in text


async def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    config = Upstream(docker_config=str(tmp_path / "nowhere.json"))
    with pytest.raises(UpstreamFailed, match=r"nowhere\.json: no such file"):
        await credential_source(*HUB, config).find("a")


async def test_an_entry_of_another_registry_may_be_broken(docker_config: Any) -> None:
    document = {"auths": {"other.example": 7, "quay.io": {"auth": auth("a", "pw")}}}
    assert await docker_config(document, QUAY).find("x") == Credential("a", "pw")


def test_a_credential_does_not_show_its_secret() -> None:
    """B62: repr, str, format and fingerprint."""
    credential = Credential("alice", "s3cret")
    shown = [repr(credential), str(credential), f"{credential}", credential.fingerprint]
    assert all("s3cret" not in text for text in shown)


def test_a_source_does_not_show_its_secret(docker_config: Any) -> None:
    """B62."""
    plain = credential_source(*HUB, Upstream(username="alice", password="s3cret"))
    filed = docker_config({"auths": {"docker.io": {"auth": auth("alice", "s3cret")}}})
    assert "s3cret" not in repr(plain) + repr(filed) + repr(vars(filed))


def test_fingerprints_tell_credentials_apart() -> None:
    """B26: part of a token's key."""
    one = Credential("a", "b")
    assert one.fingerprint == Credential("a", "b").fingerprint
    others = [
        Credential("a", "c"),
        Credential("b", "b"),
        Credential("a", "b", is_identity=True),
        Credential("a", "b", is_token=True),
        Credential("a\0", "b"),
    ]
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_basic_takes_any_character() -> None:
    """RFC 7617: UTF-8."""
    encoded = base64.b64encode("älice:pä:ss".encode()).decode()
    assert basic_authorization("älice", "pä:ss") == f"Basic {encoded}"
