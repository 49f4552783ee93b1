"""Digests, tags and repositories as values that are always valid: constructors raise.

The grammar is that of the OCI distribution specification ("Pulling manifests"), which recommends
the limit of 255 characters for a host and a repository name.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final, Protocol

from regmirror.errors import DigestInvalid, ManifestUnknown, NameInvalid


class Hasher(Protocol):
    """The methods of a ``hashlib`` object that this project uses."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...
    def copy(self) -> Hasher: ...


_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG: Final = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_HOST: Final = re.compile(r"(?:\[[0-9a-f:.]+\]|[a-z0-9](?:[a-z0-9_.-]*[a-z0-9])?)(?::[0-9]{1,5})?")
NAME_MAX: Final = 255


class Digest(str):
    """``sha256:HEX`` or ``sha512:HEX`` (image specification, "Digests").

    Raises DigestInvalid for anything else.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Digest:
        if _DIGEST.fullmatch(text) is None:
            raise DigestInvalid(f"{text[:200]!r} is not a sha256 or sha512 digest")
        return super().__new__(cls, text)

    @property
    def algorithm(self) -> str:
        return self[:6]

    @property
    def encoded(self) -> str:
        return self[7:]

    def hasher(self) -> Hasher:
        """A new hash object of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        """The digest of ``data``."""
        return cls(f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}")


class Tag(str):
    """A tag (distribution specification, "Pulling manifests"); raises ManifestUnknown for other texts."""

    __slots__ = ()

    def __new__(cls, text: str) -> Tag:
        if _TAG.fullmatch(text) is None:
            raise ManifestUnknown(f"{text[:200]!r} is neither a tag nor a digest")
        return super().__new__(cls, text)


Reference = Digest | Tag


def parse_reference(text: str) -> Reference:
    """The digest (with a colon) or tag in ``text``; raises DigestInvalid or ManifestUnknown."""
    return Digest(text) if ":" in text else Tag(text)


@dataclass(frozen=True, slots=True)
class Repository:
    """A name on an upstream, which is given by its canonical name; raises NameInvalid."""

    upstream: str
    name: str

    def __post_init__(self) -> None:
        if len(self.name) > NAME_MAX or _NAME.fullmatch(self.name) is None:
            raise NameInvalid(f"{self.name[:NAME_MAX]!r} is not a repository name")

    def __str__(self) -> str:
        return f"{self.upstream}/{self.name}"


def is_host(text: str) -> bool:
    """Whether ``text`` is a lower-case host name or address with an optional port."""
    return len(text) <= NAME_MAX and _HOST.fullmatch(text) is not None


def looks_like_host(component: str) -> bool:
    """Whether clients read a first path component as a host: with a dot or colon, or ``localhost``."""
    return "." in component or ":" in component or component == "localhost"


def split_image(text: str) -> tuple[str, str]:
    """Split ``name[:tag][@digest]`` into name and reference; without a reference it is ``latest``."""
    name, at, digest = text.partition("@")
    head, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    reference = digest if at else tag if colon else "latest"
    return f"{head}{slash}{last}", reference
