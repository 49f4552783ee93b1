"""Docker's ``config.json`` and podman's ``auth.json``: the credential of a registry.

    {"auths": {"<key>": {"auth": base64("user:password"), "username": …, "password": …,
                         "identitytoken": …, "registrytoken": …}},
     "credHelpers": {"<key>": "<helper>"}, "credsStore": "<helper>"}

A key is a host, with or without ``https://`` and a path (``https://index.docker.io/v1/`` for
Docker Hub); podman also has namespaces as in ``quay.io/team``, of which the longest match is used.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from yarl import URL

from regmirror.upstream.auth.url_policy import host_of

HUB_KEY: Final = "https://index.docker.io/v1/"
_HUB_HOSTS: Final = (
    "docker.io",
    "index.docker.io",
    "registry-1.docker.io",
    "registry.hub.docker.com",
)
_TOKEN_USER: Final = "<token>"  # the user name that helpers give to a refresh token
_HEADER_SAFE: Final = re.compile(r"[\x21-\x7e]+")


class Unusable(Exception):
    """The file cannot be used; the text is the reason, without content of the file."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The value of one key of ``auths``; exactly one of the secrets is set."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Keys:
    """The spellings under which a repository's registry may be listed, best first.

    ``places`` are normalised (``host``, ``host/namespace``); ``servers`` are the
    arguments of a helper.
    """

    places: tuple[str, ...]
    servers: tuple[str, ...]


def server_keys(name: str, base_url: URL, repository: str) -> Keys:
    """The keys for ``repository`` of the upstream called ``name`` at ``base_url``."""
    host = host_of(base_url)
    bracketed = f"[{host}]" if ":" in host else host
    authority = bracketed if base_url.is_default_port() else f"{bracketed}:{base_url.port}"
    hosts = list(dict.fromkeys((name, authority)))
    is_hub = bool({name, authority} & set(_HUB_HOSTS))
    if is_hub:
        hosts = list(dict.fromkeys((*hosts, *_HUB_HOSTS)))
    parts = repository.split("/")
    paths = ["/".join(parts[:length]) for length in range(len(parts), 0, -1)]
    namespaced = [f"{one}/{path}" for path in paths for one in hosts]
    return Keys((*namespaced, *hosts), (HUB_KEY,) if is_hub else tuple(hosts))


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file, its keys normalised."""

    auths: dict[str, Any] = field(repr=False)
    cred_helpers: dict[str, str]
    creds_store: str

    def helpers(self, keys: Keys) -> Iterator[tuple[str, str]]:
        """The helpers to run, with the server to pass: the registry's own, then ``credsStore``."""
        for place in keys.places:
            if helper := self.cred_helpers.get(place):
                yield helper, keys.servers[0] if HUB_KEY in keys.servers else place
                return
        if self.creds_store:
            for server in keys.servers:
                yield self.creds_store, server

    def entry(self, keys: Keys) -> Entry | None:
        """The most specific entry that is not empty; raises Unusable if it is malformed."""
        for place in keys.places:
            if (raw := self.auths.get(place)) and (entry := _entry(raw, place)):
                return entry
        return None


def parse_config(content: bytes) -> Document:
    """Read the file; raises Unusable if it is malformed."""
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError):
        raise Unusable("is not JSON") from None
    if not isinstance(raw, dict):
        raise Unusable("is not a JSON object")
    store = raw.get("credsStore", "")
    return Document(
        auths={_normalise(key): value for key, value in _table(raw, "auths").items()},
        cred_helpers={
            _normalise(key): helper
            for key, helper in _table(raw, "credHelpers").items()
            if isinstance(helper, str)
        },
        creds_store=store if isinstance(store, str) else "",
    )


def _table(raw: dict[str, Any], key: str) -> dict[str, Any]:
    table = raw.get(key) or {}
    if not isinstance(table, dict):
        raise Unusable(f"{key} is not a table")
    return table


def _normalise(key: str) -> str:
    """``https://Host/v1/`` as ``host``; namespaces stay, versions of the API go."""
    place = key.partition("://")[2] if "://" in key else key
    host, _, path = place.partition("/")
    path = path.strip("/")
    if path in ("v1", "v2") or "://" in key:
        path = ""
    return f"{host.lower()}/{path}" if path else host.lower()


def _entry(raw: Any, place: str) -> Entry | None:
    if not isinstance(raw, dict):
        raise Unusable(f"the entry for {place} is not a table")
    username, password = _text(raw, "username", place), _text(raw, "password", place)
    if encoded := _text(raw, "auth", place):
        username, password = _decode(encoded, place)
    if token := _text(raw, "registrytoken", place).strip():
        if _HEADER_SAFE.fullmatch(token) is None:
            raise Unusable(f"registrytoken of the entry for {place} is not a token")
        return Entry(username, registry_token=token)
    if token := _text(raw, "identitytoken", place):
        return Entry(username, identity_token=token)
    if username == _TOKEN_USER:
        return Entry(username, identity_token=password)
    return Entry(username, password) if username or password else None


def _text(raw: dict[str, Any], key: str, place: str) -> str:
    value = raw.get(key) or ""
    if not isinstance(value, str):
        raise Unusable(f"{key} of the entry for {place} is not a text")
    return value


def _decode(encoded: str, place: str) -> tuple[str, str]:
    """User and password of ``auth``: split at the first colon, padding and NUL tolerated."""
    compact = "".join(encoded.split())
    try:
        padded = compact + "=" * (-len(compact) % 4)
        text = base64.b64decode(padded, validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        raise Unusable(f"auth of the entry for {place} is not base64") from None
    username, colon, password = text.partition(":")
    if not colon:
        raise Unusable(f"auth of the entry for {place} is not a user and a password")
    return username, password.rstrip("\0")
