"""Request paths (distribution specification, "Endpoints") as values.

A path is parsed from its right end, since the name of a repository may contain ``manifests``,
``blobs``, ``tags`` or ``uploads``. A request names its upstream in one of four ways; the first
one present wins: prefix (``/ghcr.io/v2/…``), first component (``/v2/ghcr.io/…``), ``?ns=``
(distribution specification, "Registry Proxying"), default. Hosts that are not configured are
rejected here, before any other work.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import unquote_to_bytes

from regmirror.errors import Denied, NameInvalid, NameUnknown
from regmirror.oci.globs import matches_any
from regmirror.oci.names import Repository, is_host, looks_like_host

Endpoint = Literal["ping", "catalog", "manifest", "blob", "tags", "referrers", "upload"]
DOCKER_HUB: Final = "docker.io"


@dataclass(frozen=True, slots=True)
class Path:
    """A path below ``/v2/``, split but not validated.

    ``prefix`` is the component before ``/v2``, ``name`` the repository as the client wrote it,
    ``argument`` the reference, digest or upload session.
    """

    endpoint: Endpoint
    name: str = ""
    argument: str = ""
    prefix: str = ""


def decode(raw_path: str) -> str:
    """Percent-decode a path once; raises NameInvalid for NUL characters and for invalid UTF-8."""
    if "%" not in raw_path and raw_path.isascii():
        return raw_path
    try:
        path = unquote_to_bytes(raw_path).decode("utf-8")
    except UnicodeError:
        raise NameInvalid("the path is not UTF-8") from None
    if "\0" in path:
        raise NameInvalid("the path contains a NUL character")
    return path


def split(path: str) -> Path | None:
    """Split a decoded path; None unless it is below ``/v2`` or ``/HOST/v2``.

    Raises NameUnknown for an endpoint that the specification does not have.
    """
    prefix = ""
    if not (path.startswith("/v2/") or path == "/v2"):
        prefix, found, rest = path[1:].partition("/v2")
        if not found or "/" in prefix or not prefix or not (rest == "" or rest[0] == "/"):
            return None
        path = "/v2" + rest
    tail = path[len("/v2/") :]
    if not tail:
        return Path("ping", prefix=prefix)
    if tail == "_catalog":
        return Path("catalog", prefix=prefix)
    return _split_tail(tail.split("/"), prefix)


def _split_tail(parts: list[str], prefix: str) -> Path:
    name, last = "/".join(parts[:-2]), parts[-1]
    match parts:
        case [*_, "manifests", _]:
            return Path("manifest", name, last, prefix)
        case [*rest, "blobs", "uploads"] | [*rest, "blobs", "uploads", _]:
            argument = last if parts[-2] == "uploads" else ""
            return Path("upload", "/".join(rest), argument, prefix)
        case [*_, "blobs", _]:
            return Path("blob", name, last, prefix)
        case [*_, "tags", "list"]:
            return Path("tags", name, "", prefix)
        case [*_, "referrers", _]:
            return Path("referrers", name, last, prefix)
    raise NameUnknown(f"nothing is served at /v2/{'/'.join(parts)[:300]}")


@dataclass(frozen=True, slots=True)
class Patterns:
    """Globs of the repositories of an upstream that may be pulled; ``deny`` overrides ``allow``."""

    allow: list[str]
    deny: list[str]


@dataclass(frozen=True, slots=True)
class UpstreamTable:
    """The configured upstreams: ``hosts`` maps each name and alias to its canonical name."""

    hosts: dict[str, str]
    default: str
    patterns: dict[str, Patterns] = field(default_factory=dict)

    def resolve(self, name: str, *, prefix: str = "", ns: list[str] | None = None) -> Repository:
        """The repository that a request names; all spellings of one repository give one value (B58).

        Raises NameInvalid for malformed hosts and names, NameUnknown for hosts that are not
        configured, Denied for repositories that ``allow`` and ``deny`` exclude.
        """
        upstream, name = self._split_host(name, prefix, ns or [])
        if upstream == DOCKER_HUB and "/" not in name:
            name = f"library/{name}"
        repository = Repository(upstream, name)
        self._check_allowed(repository)
        return repository

    def resolve_upstream(self, *, prefix: str = "", ns: list[str] | None = None) -> str | None:
        """The upstream of a request without a repository (``_catalog``); None if it names none."""
        host = prefix.lower() or _one_ns(ns or [])
        return self._get_upstream(host) if host else None

    def namespace(self, name: str, *, prefix: str = "", ns: list[str] | None = None) -> str:
        """The ``ns`` that selects the upstream; empty if a prefix or the first component selects it."""
        first, slash, _ = name.partition("/")
        is_explicit = bool(prefix) or (bool(slash) and first in self.hosts)
        return "" if is_explicit else _one_ns(ns or [])

    def _split_host(self, name: str, prefix: str, ns: list[str]) -> tuple[str, str]:
        first, slash, rest = name.partition("/")
        named = self.hosts.get(first) if slash else None
        from_ns = _one_ns(ns)
        if prefix:
            upstream = self._get_upstream(prefix.lower())
            return upstream, rest if named == upstream else name
        if named is not None:
            return named, rest
        if from_ns:
            return self._get_upstream(from_ns), name
        if slash and looks_like_host(first):
            self._get_upstream(first.lower())
        return self._get_upstream(self.default), name

    def _get_upstream(self, host: str) -> str:
        if not is_host(host):
            raise NameInvalid(f"{host[:200]!r} is not a host name")
        upstream = self.hosts.get(host) or self.hosts.get(host.removesuffix(":443"))
        if upstream is None:
            raise NameUnknown(f"{host} is not an upstream of this mirror")
        return upstream

    def _check_allowed(self, repository: Repository) -> None:
        rule = self.patterns.get(repository.upstream)
        if rule is None:
            return
        if matches_any(rule.deny, repository.name) or not matches_any(rule.allow, repository.name):
            raise Denied(f"{repository} is not allowed by the configuration of this mirror")


def _one_ns(values: list[str]) -> str:
    hosts = {value.strip().lower() for value in values if value.strip()}
    if len(hosts) > 1:
        raise NameInvalid("ns has several different values")
    return hosts.pop() if hosts else ""
