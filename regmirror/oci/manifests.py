"""Manifests: kept byte for byte, read only for what they reference.

Media types and fields are those of the OCI image specification v1.1 ("Image Manifest",
"Image Index") and of Docker's schema 2; everything unknown passes through untouched.
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

#: Asked of every upstream, whatever the client accepts: a digest names one byte string.
ACCEPTED: Final = (
    OCI_INDEX,
    OCI_MANIFEST,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    "application/vnd.oci.artifact.manifest.v1+json",
    "*/*",
)
MANIFEST_MAX: Final = 8 * 1024 * 1024  # bytes; clients refuse more than about 4.4 MB
_VAGUE: Final = {"", "application/json", "text/plain", "application/octet-stream"}
_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
_MEDIA_TYPE: Final = re.compile(f"{_NAME}/{_NAME}")  # RFC 6838 section 4.2
_SIZE_END: Final = 2**63  # what a database and every client can still count


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference to content (image specification, "Descriptor") and what it is used as.

    ``role`` is ``config``, ``layer``, ``manifest`` (a child of an index) or ``subject``.
    ``fetchable`` is false where the content may live elsewhere than in the repository
    (foreign layers, subjects): such a reference proves nothing about the repository.
    """

    digest: Digest
    size: int
    media_type: str
    role: str
    fetchable: bool = True


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest as the upstream said it: its bytes, their digest, the media type."""

    digest: Digest
    media_type: str
    payload: bytes

    @property
    def size(self) -> int:
        return len(self.payload)


@dataclass(frozen=True, slots=True)
class ManifestSummary:
    """A manifest without its bytes: what HEAD tells of it."""

    digest: Digest
    media_type: str
    size: int


class NotAManifest(ValueError):
    """The bytes are not a JSON object that describes content."""


def parse_document(payload: bytes) -> dict[str, Any]:
    """The JSON object in ``payload``; raises NotAManifest for anything else (HTML, lists …)."""
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise NotAManifest(f"not JSON: {error}") from None
    if not isinstance(document, dict):
        raise NotAManifest("not a JSON object")
    return document


def names_a_kind(media_type: str) -> bool:
    """Whether this can be the media type of a manifest: well formed, and not just "some JSON"."""
    return media_type.lower() not in _VAGUE and _MEDIA_TYPE.fullmatch(media_type) is not None


def media_type_of(document: dict[str, Any], content_type: str) -> str:
    """The bare media type: what the upstream said, else what the document shows it to be.

    It becomes a header of our answers, so whatever is no media type is passed over.
    """
    said = content_type.partition(";")[0].strip()
    if names_a_kind(said):
        return said
    declared = document.get("mediaType")
    if isinstance(declared, str) and names_a_kind(declared):
        return declared
    if document.get("schemaVersion") == 1:
        return DOCKER_SCHEMA1_SIGNED if "signatures" in document else DOCKER_SCHEMA1
    if "manifests" in document:
        return OCI_INDEX
    if "layers" in document or "config" in document:
        return OCI_MANIFEST
    raise NotAManifest("a document of no known kind")


def describes_content(document: dict[str, Any]) -> bool:
    """Whether ``document`` has the shape of a manifest; an API error or a status page has not."""
    if "errors" in document and "schemaVersion" not in document:
        return False
    return isinstance(document.get("schemaVersion"), int) or isinstance(document.get("mediaType"), str)


def references(document: dict[str, Any]) -> list[Descriptor]:
    """Everything the manifest names, in its order; malformed descriptors are passed over."""
    found = [_descriptor(document.get("config"), "config")]
    found += [_descriptor(item, "layer") for item in _items(document, "layers", "blobs")]
    found += [_descriptor(item, "manifest") for item in _items(document, "manifests")]
    found += [_schema1_layer(item) for item in _items(document, "fsLayers")]
    found.append(_descriptor(document.get("subject"), "subject"))
    return [item for item in found if item is not None]


def platform_of(item: dict[str, Any]) -> str:
    """``os/architecture[/variant]`` of an index entry, or an empty text."""
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
