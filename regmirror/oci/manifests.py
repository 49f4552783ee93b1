"""Manifests: stored byte for byte, parsed only for their media type and references.

Media types and fields are those of the OCI image specification v1.1 ("OCI Image Manifest
Specification", "OCI Image Index Specification") and of Docker's image manifest version 2,
schemas 1 and 2. Unknown fields are ignored and unknown media types are allowed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from regmirror.errors import DigestInvalid
from regmirror.oci.names import Digest

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_SCHEMA1_SIGNED: Final = "application/vnd.docker.distribution.manifest.v1+prettyjws"
DOCKER_SCHEMA1: Final = "application/vnd.docker.distribution.manifest.v1+json"

#: The Accept header of every upstream request, independent of the client: a digest is one byte string.
ACCEPTED: Final = (
    OCI_INDEX,
    OCI_MANIFEST,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    "application/vnd.oci.artifact.manifest.v1+json",
    "*/*",
)
MANIFEST_MAX: Final = 8 * 1024 * 1024  # bytes; clients reject manifests above about 4.4 MB
_GENERIC: Final = {"", "application/json", "text/plain", "application/octet-stream"}
_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
_MEDIA_TYPE: Final = re.compile(f"{_NAME}/{_NAME}")  # RFC 6838 section 4.2
_SIZE_END: Final = 2**63  # exclusive; integers of SQLite and of Go clients have 64 bits


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A descriptor (image specification, "OCI Content Descriptors") and its role in a manifest.

    ``size`` is in bytes, -1 if the manifest states no valid size. ``role`` is ``config``,
    ``layer``, ``manifest`` (a child of an index) or ``subject``. ``fetchable`` is false if the
    content may be absent from the repository (foreign layers, subjects): such a reference is no
    evidence that the repository has the content.
    """

    digest: Digest
    size: int
    media_type: str
    role: str
    fetchable: bool = True


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest as the upstream sent it: its bytes, their digest and the media type."""

    digest: Digest
    media_type: str
    payload: bytes

    @property
    def size(self) -> int:
        return len(self.payload)


@dataclass(frozen=True, slots=True)
class ManifestSummary:
    """The digest, media type and size in bytes of a manifest, as a response to HEAD reports them."""

    digest: Digest
    media_type: str
    size: int


class NotAManifest(ValueError):
    """The bytes are not a JSON object that describes content."""


def parse_document(payload: bytes) -> dict[str, Any]:
    """The JSON object in ``payload``; raises NotAManifest for anything else, such as HTML or a list."""
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise NotAManifest(f"not JSON: {error}") from None
    if not isinstance(document, dict):
        raise NotAManifest("not a JSON object")
    return document


def names_a_kind(media_type: str) -> bool:
    """Whether ``media_type`` is well formed (RFC 6838 section 4.2) and not generic, such as JSON."""
    return media_type.lower() not in _GENERIC and _MEDIA_TYPE.fullmatch(media_type) is not None


def media_type_of(document: dict[str, Any], content_type: str) -> str:
    """The media type of a manifest, without parameters; raises NotAManifest if there is none.

    The first of: the upstream's Content-Type, the field ``mediaType``, the type that the fields of
    ``document`` imply. Malformed and generic types are skipped, since the result becomes a response
    header.
    """
    sent = content_type.partition(";")[0].strip()
    if names_a_kind(sent):
        return sent
    declared = document.get("mediaType")
    if isinstance(declared, str) and names_a_kind(declared):
        return declared
    if document.get("schemaVersion") == 1:
        return DOCKER_SCHEMA1_SIGNED if "signatures" in document else DOCKER_SCHEMA1
    if "manifests" in document:
        return OCI_INDEX
    if "layers" in document or "config" in document:
        return OCI_MANIFEST
    raise NotAManifest("the document is neither a manifest nor an index")


def describes_content(document: dict[str, Any]) -> bool:
    """Whether ``document`` has the fields of a manifest, unlike an API error or a status page (B10)."""
    if "errors" in document and "schemaVersion" not in document:
        return False
    return isinstance(document.get("schemaVersion"), int) or isinstance(document.get("mediaType"), str)


def references(document: dict[str, Any]) -> list[Descriptor]:
    """The descriptors in a manifest: config, layers, manifests and subject; malformed ones are skipped."""
    found = [_descriptor(document.get("config"), "config")]
    found += [_descriptor(item, "layer") for item in _items(document, "layers", "blobs")]
    found += [_descriptor(item, "manifest") for item in _items(document, "manifests")]
    found += [_schema1_layer(item) for item in _items(document, "fsLayers")]
    found.append(_descriptor(document.get("subject"), "subject"))
    return [item for item in found if item is not None]


def platform_of(item: dict[str, Any]) -> str:
    """``os/architecture[/variant]`` of an index entry (image specification, "platform"); else empty."""
    platform = item.get("platform")
    if not isinstance(platform, dict):
        return ""
    parts = (platform.get("os"), platform.get("architecture"), platform.get("variant"))
    return "/".join(str(part) for part in parts if part)


def _items(document: dict[str, Any], *keys: str) -> list[object]:
    lists = [document.get(key) for key in keys]
    return [item for items in lists if isinstance(items, list) for item in items]


def _descriptor(item: object, role: str) -> Descriptor | None:
    if not isinstance(item, dict):
        return None
    try:
        digest = Digest(str(item.get("digest")))
    except DigestInvalid:
        return None
    size, media_type = item.get("size"), str(item.get("mediaType", ""))
    foreign = bool(item.get("urls")) or "nondistributable" in media_type or "foreign" in media_type
    return Descriptor(
        digest,
        size if isinstance(size, int) and 0 <= size < _SIZE_END else -1,
        media_type,
        role,
        fetchable=role != "subject" and not foreign,
    )


def _schema1_layer(item: object) -> Descriptor | None:
    if not isinstance(item, dict):
        return None
    return _descriptor({"digest": item.get("blobSum"), "size": None}, "layer")
