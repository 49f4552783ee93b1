"""Every configuration key with its type, default and constraints.

``mirror.toml`` documents the keys for users; a test keeps it equal to the defaults here.
``regmirror.config.loader`` reads the file and the environment.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    field_validator,
    model_validator,
)

from regmirror.oci.globs import compile_glob
from regmirror.urls import has_possible_authority

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d|w)")


def parse_duration(value: object) -> float:
    """The seconds of ``30s``, ``5m``, ``1h30m``, ``7d`` or ``0``; raises ValueError."""
    text = str(value).strip()
    if text in ("0", "0.0"):
        return 0.0
    if not re.fullmatch(rf"(?:{_DURATION.pattern})+", text):
        raise ValueError("write a duration as 30s, 5m, 24h or 7d")
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text))


def format_duration(seconds: float) -> str:
    """The shortest text that ``parse_duration`` parses to ``seconds``."""
    for unit in ("d", "h", "m", "s"):
        if seconds >= _UNITS[unit] and seconds % _UNITS[unit] == 0:
            return f"{seconds / _UNITS[unit]:.0f}{unit}"
    return f"{seconds:g}s" if seconds else "0"


def parse_size(value: object) -> object:
    """Return ``value`` if it is a size; raises ValueError for some texts that ByteSize accepts."""
    if not re.fullmatch(r"[0-9]+(?:\.[0-9]+)?\s*(?:[kmgtpKMGTP]?i?[bB]?)", str(value).strip()):
        raise ValueError("write a size as 500MB, 50GB or 200MiB")
    return value


def format_size(size: int) -> str:
    """The shortest text that means exactly ``size`` bytes."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def _parse_pattern(pattern: str) -> str:
    compile_glob(pattern)
    return pattern


Pattern = Annotated[str, AfterValidator(_parse_pattern)]
Duration = Annotated[float, BeforeValidator(parse_duration), PlainSerializer(format_duration)]
Size = Annotated[ByteSize, BeforeValidator(parse_size), PlainSerializer(format_size)]


_NO_AUTHORITY = "is not a possible host and port; write host:port with a port from 1 to 65535"
ANY_ADDRESS = "0.0.0.0"  # noqa: S104 - a mirror serves other machines


class Section(BaseModel):
    """One table of the configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Tls(Section):
    certificate: str = ""
    key: str = ""

    @model_validator(mode="after")
    def _both_or_none(self) -> Tls:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("set both certificate and key, or none of them")
        return self


class Server(Section):
    listen: str = f"{ANY_ADDRESS}:5000"
    workers: int = Field(default=1, ge=0, le=256)
    drain_timeout: Duration = 30.0
    trusted_proxies: list[str] = []
    tls: Tls = Tls()

    @field_validator("listen")
    @classmethod
    def _listen_is_an_address(cls, listen: str) -> str:
        split_address(listen)
        return listen


class Storage(Section):
    path: str = "data"
    url: str = ""
    max_size: Size = ByteSize(0)
    min_free: Size = ByteSize(2**30)


class MetadataSection(Section):
    url: str = ""


class FreshnessRule(Section):
    match: Pattern
    tag_max_age: Duration


class Freshness(Section):
    tag_max_age: Duration = 300.0
    stale_if_error: Duration = 30 * 86400.0
    missing_max_age: Duration = 10.0
    on_missing: Literal["forget", "keep"] = "forget"
    incomplete: Literal["refuse", "serve"] = "refuse"
    offline: bool = False
    rules: list[FreshnessRule] = []


class Gc(Section):
    interval: Duration = 3600.0
    grace: Duration = 3600.0
    keep_untagged: Duration = 30 * 86400.0


class Scrub(Section):
    interval: Duration = 7 * 86400.0
    rate: Size = ByteSize(20 * 2**20)


Action = Literal["pull", "push", "delete"]


class AccessRule(Section):
    repositories: list[str]
    users: list[str]
    actions: list[Action]


class Access(Section):
    htpasswd: str = ""
    anonymous: list[Action] = ["pull"]
    rules: list[AccessRule] = []
    groups: dict[str, list[str]] = {}


class Hosted(Section):
    repositories: list[str] = []


class Webhook(Section):
    url: str
    events: list[Literal["push", "pull", "delete", "cached", "evicted"]] = []
    secret: SecretStr = SecretStr("")


class Upstream(Section):
    """One upstream; the name of its table is the host that clients write."""

    enabled: bool = True
    url: str = ""
    aliases: list[str] = []
    username: str = ""
    password: SecretStr = SecretStr("")
    password_file: str = ""
    docker_config: str = ""
    ca_file: str = ""
    client_certificate: str = ""
    client_key: str = ""
    insecure: bool = False
    http_proxy: str = ""
    auth_hosts: list[str] = []
    allow: list[Pattern] = ["**"]
    deny: list[Pattern] = []
    rate_limit_reserve: int = Field(default=0, ge=0)
    max_connections: int = Field(default=64, ge=1, le=10_000)
    connect_timeout: Duration = Field(default=5.0, gt=0)
    read_timeout: Duration = Field(default=30.0, gt=0)

    @field_validator("url")
    @classmethod
    def _url_is_a_host(cls, url: str) -> str:
        if url and not re.fullmatch(r"https?://[^/\s@?#]+/?", url):
            raise ValueError("write http://host or https://host, without path, user or query")
        if url and not has_possible_authority(url):
            raise ValueError(_NO_AUTHORITY)
        return url

    @field_validator("http_proxy")
    @classmethod
    def _proxy_is_http(cls, proxy: str) -> str:
        if proxy and not re.fullmatch(r"https?://[^\s/?#]+/?", proxy):
            raise ValueError(
                "write the address of the proxy as http://host:port; percent-encode / ? and # in a password"
            )
        if proxy and not has_possible_authority(proxy):
            raise ValueError(_NO_AUTHORITY)
        return proxy

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Upstream:
        if bool(self.client_certificate) != bool(self.client_key):
            raise ValueError("set both client_certificate and client_key, or none of them")
        return self


BUILT_IN: dict[str, dict[str, Any]] = {
    "docker.io": {
        "url": "https://registry-1.docker.io",
        "aliases": ["index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"],
    },
    **{
        host: {"url": f"https://{host}"}
        for host in (
            "ghcr.io",
            "quay.io",
            "gcr.io",
            "registry.k8s.io",
            "mcr.microsoft.com",
            "public.ecr.aws",
            "nvcr.io",
            "registry.gitlab.com",
        )
    },
}


class Config(Section):
    """The whole configuration; immutable once loaded."""

    default_upstream: str = "docker.io"
    server: Server = Server()
    storage: Storage = Storage()
    metadata: MetadataSection = MetadataSection()
    freshness: Freshness = Freshness()
    gc: Gc = Gc()
    scrub: Scrub = Scrub()
    access: Access = Access()
    hosted: Hosted = Hosted()
    webhooks: list[Webhook] = []
    upstreams: dict[str, Upstream] = Field(default_factory=dict, validate_default=True)

    @field_validator("upstreams", mode="before")
    @classmethod
    def _add_built_in(cls, tables: Any) -> Any:
        """A table with a built-in name overrides keys of that upstream; other names add upstreams."""
        if not isinstance(tables, dict):
            return tables
        merged: dict[str, Any] = {name: dict(table) for name, table in BUILT_IN.items()}
        for name, table in tables.items():
            merged[name] = {**merged.get(name, {}), **table} if isinstance(table, dict) else table
        return merged

    def enabled_upstreams(self) -> dict[str, Upstream]:
        """The upstreams that may be contacted, by canonical name."""
        return {name: item for name, item in self.upstreams.items() if item.enabled}

    def known_hosts(self) -> dict[str, str]:
        """The canonical name of each enabled upstream, by each of its names and aliases."""
        enabled = self.enabled_upstreams()
        return {host: name for name, item in enabled.items() for host in (name, *item.aliases)}


def upstream_url(name: str, upstream: Upstream) -> str:
    """The base URL of an upstream: ``url``, by default https://NAME (http://NAME if ``insecure``)."""
    scheme = "http" if upstream.insecure else "https"
    return (upstream.url or f"{scheme}://{name}").rstrip("/")


def split_address(address: str) -> tuple[str, int]:
    """The host and port of ``host:port``, ``[::1]:port`` or ``:port`` (every address); raises ValueError."""
    host, colon, port = address.rpartition(":")
    if not colon or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError("write an address as host:port, as in 0.0.0.0:5000")
    host = host.strip("[]") or ANY_ADDRESS
    try:
        host.encode("idna")  # as the socket encodes it
    except UnicodeError:
        raise ValueError(
            "is not a possible host; write an address as host:port, as in 0.0.0.0:5000"
        ) from None
    if "\0" in host:
        raise ValueError("is not a possible host; write an address as host:port, as in 0.0.0.0:5000")
    return host, int(port)
