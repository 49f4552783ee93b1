"""Names as values that cannot be invalid: digests, tags, repositories, image names.

The grammar is the OCI distribution specification's ("Pulling manifests") with a limit of
255 characters on a repository name. Constructors raise; whoever holds a value may trust it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final, Protocol

from regmirror.errors import DigestInvalid, ManifestUnknown, NameInvalid


class Hasher(Protocol):
    """The part of a ``hashlib`` object that is used here."""

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
    """``algorithm:hex`` of the algorithms that can be verified here: sha256 and sha512."""

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
    """A name that may move to another manifest at any time."""

    __slots__ = ()

    def __new__(cls, text: str) -> Tag:
        if _TAG.fullmatch(text) is None:
            raise ManifestUnknown(f"{text[:200]!r} is neither a tag nor a digest")
        return super().__new__(cls, text)


Reference = Digest | Tag


def parse_reference(text: str) -> Reference:
    """A text with a colon is a digest, any other a tag (specification, "Pulling manifests")."""
    return Digest(text) if ":" in text else Tag(text)


@dataclass(frozen=True, slots=True)
class Repository:
    """Where content lives: the canonical name of an upstream and a name there."""

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
    """Whether a first path component names a host, by the rule every client follows."""
    return "." in component or ":" in component or component == "localhost"


def split_image(text: str) -> tuple[str, str]:
    """Split ``name[:tag][@digest]`` into name and reference text; ``latest`` without one."""
    name, at, digest = text.partition("@")
    head, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    reference = digest if at else tag if colon else "latest"
    return f"{head}{slash}{last}", reference
