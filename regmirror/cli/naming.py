"""Image names as users write them, and the repositories and references that they mean."""

from __future__ import annotations

import re
from typing import Final

from regmirror.config.schema import Config
from regmirror.errors import NameUnknown, RegistryError
from regmirror.oci.globs import compile_glob, matches
from regmirror.oci.names import (
    Digest,
    Reference,
    Repository,
    is_host,
    looks_like_host,
    parse_reference,
    split_image,
)
from regmirror.oci.paths import DOCKER_HUB, UpstreamTable

_SET: Final = re.compile(r"\[!?[^\]]+\]")


def check_glob(pattern: str) -> None:
    """Raise ValueError if ``pattern`` is empty, or has an invalid or unclosed set of characters."""
    if not pattern.strip("/"):
        raise ValueError(f"{pattern!r} is not a pattern; write one such as 'ghcr.io/org/**'")
    if "[" in _SET.sub("", pattern):
        raise ValueError(f"{pattern!r} is not a pattern: close [ with ]")
    compile_glob(pattern)


class Naming:
    """Parses and formats names by the upstreams of one configuration."""

    def __init__(self, config: Config) -> None:
        self._table = UpstreamTable(config.known_hosts(), config.default_upstream)
        self._default = config.known_hosts()[config.default_upstream]

    def parse(self, image: str) -> tuple[Repository, Reference]:
        """The repository and reference of ``image``; without tag or digest the tag is ``latest``.

        Raises NameInvalid, DigestInvalid or ManifestUnknown for a malformed name.
        """
        name, reference = split_image(image)
        return self._resolve(name), parse_reference(reference)

    def _resolve(self, name: str) -> Repository:
        try:
            return self._table.resolve(name)
        except NameUnknown:
            # Content of an upstream that is no longer configured may still be stored.
            host, _, rest = name.partition("/")
            if not is_host(host):
                raise
            return Repository(host, rest)

    def is_upstream(self, host: str) -> bool:
        """Whether ``host`` is a configured upstream or one of its aliases."""
        return host in self._table.hosts

    def show(self, repository: Repository) -> str:
        """The shortest name that ``parse`` resolves to the repository."""
        candidates = []
        if repository.upstream == self._default:
            if repository.upstream == DOCKER_HUB:
                candidates.append(repository.name.removeprefix("library/"))
            candidates.append(repository.name)
        return next((text for text in candidates if self._means(text, repository)), str(repository))

    def show_image(self, repository: Repository, reference: Reference) -> str:
        """``alpine:3.20`` or ``ghcr.io/org/app@sha256:…``."""
        return f"{self.show(repository)}{_suffix(reference)}"

    def is_match(self, glob: str, repository: Repository, reference: Reference) -> bool:
        """Whether ``glob`` matches the short or full name, with or without the reference."""
        names = (self.show(repository), str(repository))
        return any(matches(glob, text) for name in names for text in (name, name + _suffix(reference)))

    def is_repository_match(self, glob: str, repository: Repository) -> bool:
        """Whether ``glob`` matches the short or full name of the repository."""
        return any(matches(glob, text) for text in (self.show(repository), str(repository)))

    def canonical(self, pattern: str) -> str:
        """The pattern with its upstream written in full, as names are stored."""
        if pattern.startswith("**"):
            return pattern
        head, slash, rest = pattern.partition("/")
        host = self._table.hosts.get(head) if slash else None
        if host is None and slash and (looks_like_host(head) or set(head) & set("*?[")):
            return pattern
        upstream, name = (host, rest) if host else (self._default, pattern)
        is_short = upstream == DOCKER_HUB and "/" not in name
        return f"{upstream}/{'library/' if is_short else ''}{name}"

    def _means(self, text: str, repository: Repository) -> bool:
        try:
            return self._table.resolve(text) == repository
        except RegistryError:
            return False


def _suffix(reference: Reference) -> str:
    return f"@{reference}" if isinstance(reference, Digest) else f":{reference}"
