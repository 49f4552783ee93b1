"""What an image consists of, and how much of it is stored.

An image is one manifest or an index of several. What the index names and the store does not
have is shown all the same: a client of one platform pulls no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from regmirror.blobs.base import BlobStore
from regmirror.metadata.reports import Reports
from regmirror.oci.manifests import (
    Descriptor,
    Manifest,
    NotAManifest,
    parse_document,
    platform_of,
    references,
)
from regmirror.oci.names import Digest

CONFIG_MAX: Final = 8 * 1024 * 1024  # bytes; a larger config is not read
DEPTH_MAX: Final = 4  # of indexes within indexes


@dataclass(frozen=True, slots=True)
class Layer:
    """A blob that a manifest names; ``size`` is -1 where neither manifest nor file tells it."""

    digest: Digest
    size: int
    media_type: str
    is_stored: bool
    is_shared: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the history; an empty one made no layer."""

    created: str
    created_by: str
    is_empty: bool


@dataclass(frozen=True, slots=True)
class Part:
    """The image of one platform, or an attestation, or whatever else the index names.

    ``size`` is that of everything in it, the manifest included; of a manifest that is not
    stored only its own is known. The config's content is empty where it is not stored.
    """

    platform: str
    digest: Digest
    media_type: str
    size: int
    is_stored: bool
    config: Digest | None = None
    blobs: list[Layer] = field(default_factory=list)
    created: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    history: list[Step] = field(default_factory=list)

    @property
    def layers(self) -> list[Layer]:
        """The blobs but for the config."""
        return [blob for blob in self.blobs if blob.digest != self.config]

    @property
    def is_complete(self) -> bool:
        """Whether a pull of it needs no upstream."""
        return self.is_stored and all(blob.is_stored for blob in self.blobs)


@dataclass(frozen=True, slots=True)
class Anatomy:
    """The whole image. Blobs that occur in several parts count once."""

    digest: Digest
    media_type: str
    size: int
    stored_bytes: int
    shared_bytes: int
    parts: list[Part]

    def layers(self) -> list[Layer]:
        """Every layer of every part, once."""
        return list({layer.digest: layer for part in self.parts for layer in part.layers}.values())


def dissect(reports: Reports, store: BlobStore, digest: Digest) -> Anatomy | None:
    """Take the image apart; None if its manifest is not stored."""
    root = reports.find_manifest(digest)
    if root is None:
        return None
    manifests: dict[Digest, Manifest] = {digest: root}
    parts = list(_walk(reports, store, root, manifests))
    shared = _shared(reports, digest, parts, manifests)
    parts = [_mark(part, shared) for part in parts]
    blobs = {blob.digest: blob for part in parts for blob in part.blobs}.values()
    stored = [blob for blob in blobs if blob.is_stored]
    own = sum(manifest.size for manifest in manifests.values())
    absent = sum(max(part.size, 0) for part in parts if not part.is_stored)
    return Anatomy(
        digest,
        root.media_type,
        own + absent + sum(max(blob.size, 0) for blob in blobs),
        own + sum(blob.size for blob in stored),
        sum(blob.size for blob in stored if blob.is_shared),
        parts,
    )


def _walk(
    reports: Reports, store: BlobStore, root: Manifest, manifests: dict[Digest, Manifest], depth: int = 0
) -> Iterator[Part]:
    """The parts below ``root``; manifests that are stored are gathered on the way."""
    document = _read(root.payload)
    items = [item for item in document.get("manifests") or [] if isinstance(item, dict)]
    if "manifests" not in document or depth >= DEPTH_MAX:
        yield _part(store, root, document)
        return
    entries = {str(item.get("digest")): item for item in items}
    for child in references(document):
        if child.role != "manifest":
            continue
        stored = reports.find_manifest(child.digest)
        entry = entries.get(child.digest, {})
        if stored is None:
            yield _absent(child, entry)
            continue
        manifests[child.digest] = stored
        for part in _walk(reports, store, stored, manifests, depth + 1):
            named = _platform(entry) if part.digest == child.digest else ""
            yield replace(part, platform=named or part.platform)


def _part(store: BlobStore, manifest: Manifest, document: dict[str, Any]) -> Part:
    named = [item for item in references(document) if item.role in ("config", "layer")]
    blobs = [_layer(store, item) for item in named]
    config = next((item.digest for item in named if item.role == "config"), None)
    content = _read_config(store, config) if config else {}
    return Part(
        platform_of({"platform": content}),
        manifest.digest,
        manifest.media_type,
        manifest.size + sum(max(blob.size, 0) for blob in blobs),
        is_stored=True,
        config=config,
        blobs=blobs,
        created=_text(content.get("created")),
        labels=_texts(_object(content.get("config")).get("Labels")),
        annotations=_texts(document.get("annotations")),
        history=_history(content),
    )


def _absent(child: Descriptor, entry: dict[str, Any]) -> Part:
    return Part(
        _platform(entry),
        child.digest,
        child.media_type,
        child.size,
        is_stored=False,
        annotations=_texts(entry.get("annotations")),
    )


def _layer(store: BlobStore, item: Descriptor) -> Layer:
    """A file of another size than the manifest says is as good as none: it is fetched again."""
    stored = store.open_for_verification(item.digest)
    if stored is None:
        return Layer(item.digest, item.size, item.media_type, is_stored=False)
    found = stored.size
    stored.close()
    return Layer(item.digest, found, item.media_type, is_stored=item.size in (-1, found))


def _read_config(store: BlobStore, digest: Digest) -> dict[str, Any]:
    stored = store.open_for_verification(digest)
    if stored is None:
        return {}
    try:
        return _read(stored.read(0, stored.size)) if stored.size <= CONFIG_MAX else {}
    finally:
        stored.close()


def _shared(
    reports: Reports, root: Digest, parts: list[Part], manifests: dict[Digest, Manifest]
) -> set[Digest]:
    """The blobs that other images need too.

    Either a manifest of another image names the blob itself, or another index or a tag of its
    own needs the whole part that the blob is in.
    """
    blobs = {blob.digest for part in parts for blob in part.blobs}
    others = reports.used_elsewhere(blobs, manifests)
    wanted = reports.used_elsewhere(manifests, manifests) | (reports.tagged(manifests) - {str(root)})
    whole = {blob.digest for part in parts if part.digest in wanted for blob in part.blobs}
    return {digest for digest in blobs if digest in others} | whole


def _mark(part: Part, shared: set[Digest]) -> Part:
    return replace(part, blobs=[replace(blob, is_shared=blob.digest in shared) for blob in part.blobs])


def _platform(entry: dict[str, Any]) -> str:
    """What the index calls it; an attestation has no platform and says so in an annotation."""
    kind = _texts(entry.get("annotations")).get("vnd.docker.reference.type", "")
    return kind or platform_of(entry)


def _history(config: dict[str, Any]) -> list[Step]:
    items = config.get("history")
    return [
        Step(
            _text(item.get("created")),
            _text(item.get("created_by")) or _text(item.get("comment")),
            item.get("empty_layer") is True,
        )
        for item in (items if isinstance(items, list) else [])
        if isinstance(item, dict)
    ]


def _read(payload: bytes) -> dict[str, Any]:
    try:
        return parse_document(payload)
    except NotAManifest:
        return {}


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _texts(value: object) -> dict[str, str]:
    return {str(key): str(item) for key, item in _object(value).items()}
