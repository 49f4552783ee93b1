"""The contents of an image, and which of them are stored.

An image is one manifest, or an index of several. Manifests that an index names are listed even if
they are not stored, since a client pulls only the manifest of its own platform.
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
NESTING_MAX: Final = 4  # indexes within indexes; deeper ones are not read


@dataclass(frozen=True, slots=True)
class Layer:
    """A blob that a manifest names; ``size`` is -1 if neither the manifest nor a file has it."""

    digest: Digest
    size: int
    media_type: str
    is_stored: bool
    is_shared: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One entry of the history; an empty one created no layer."""

    created: str
    created_by: str
    is_empty: bool


@dataclass(frozen=True, slots=True)
class PlatformImage:
    """One manifest of an image: the image of a platform, an attestation or another artifact.

    ``size`` includes the blobs, unless the manifest is not stored. ``created``, ``labels`` and
    ``history`` come from the config, and are empty if it is not stored.
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
        """The blobs except the config."""
        return [blob for blob in self.blobs if blob.digest != self.config]

    @property
    def is_complete(self) -> bool:
        """Whether a pull needs no upstream request."""
        return self.is_stored and all(blob.is_stored for blob in self.blobs)


@dataclass(frozen=True, slots=True)
class ImageContents:
    """The whole image; sizes count a blob once, even if several manifests name it."""

    digest: Digest
    media_type: str
    size: int
    stored_bytes: int
    shared_bytes: int
    images: list[PlatformImage]

    def layers(self) -> list[Layer]:
        """Every layer of every platform, once."""
        return list({layer.digest: layer for image in self.images for layer in image.layers}.values())


def read_contents(reports: Reports, store: BlobStore, digest: Digest) -> ImageContents | None:
    """The contents of the image; None if its manifest is not stored."""
    root = reports.find_manifest(digest)
    if root is None:
        return None
    manifests: dict[Digest, Manifest] = {digest: root}
    images = list(_walk(reports, store, root, manifests))
    shared = _find_shared(reports, digest, images, manifests)
    images = [_mark_shared(image, shared) for image in images]
    blobs = {blob.digest: blob for image in images for blob in image.blobs}.values()
    stored = [blob for blob in blobs if blob.is_stored]
    own = sum(manifest.size for manifest in manifests.values())
    absent = sum(max(image.size, 0) for image in images if not image.is_stored)
    return ImageContents(
        digest,
        root.media_type,
        own + absent + sum(max(blob.size, 0) for blob in blobs),
        own + sum(blob.size for blob in stored),
        sum(blob.size for blob in stored if blob.is_shared),
        images,
    )


def _walk(
    reports: Reports, store: BlobStore, root: Manifest, manifests: dict[Digest, Manifest], depth: int = 0
) -> Iterator[PlatformImage]:
    """The images below ``root``; adds the stored manifests to ``manifests``."""
    document = _read(root.payload)
    items = [item for item in document.get("manifests") or [] if isinstance(item, dict)]
    if "manifests" not in document or depth >= NESTING_MAX:
        yield _read_image(store, root, document)
        return
    entries = {str(item.get("digest")): item for item in items}
    for child in references(document):
        if child.role != "manifest":
            continue
        stored = reports.find_manifest(child.digest)
        entry = entries.get(child.digest, {})
        if stored is None:
            yield _absent_image(child, entry)
            continue
        manifests[child.digest] = stored
        for image in _walk(reports, store, stored, manifests, depth + 1):
            platform = _platform(entry) if image.digest == child.digest else ""
            yield replace(image, platform=platform or image.platform)


def _read_image(store: BlobStore, manifest: Manifest, document: dict[str, Any]) -> PlatformImage:
    named = [item for item in references(document) if item.role in ("config", "layer")]
    blobs = [_layer(store, item) for item in named]
    config = next((item.digest for item in named if item.role == "config"), None)
    content = _read_config(store, config) if config else {}
    return PlatformImage(
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


def _absent_image(child: Descriptor, entry: dict[str, Any]) -> PlatformImage:
    return PlatformImage(
        _platform(entry),
        child.digest,
        child.media_type,
        child.size,
        is_stored=False,
        annotations=_texts(entry.get("annotations")),
    )


def _layer(store: BlobStore, item: Descriptor) -> Layer:
    """The layer; a file whose size differs from the manifest does not count as stored."""
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


def _find_shared(
    reports: Reports, root: Digest, images: list[PlatformImage], manifests: dict[Digest, Manifest]
) -> set[Digest]:
    """The digests of the blobs that other images share.

    A blob is shared if a manifest of another image names it, or if another index or a tag names
    a whole manifest that it belongs to.
    """
    blobs = {blob.digest for image in images for blob in image.blobs}
    named = reports.find_shared(blobs, manifests)
    roots = reports.find_shared(manifests, manifests) | (reports.find_tagged(manifests) - {str(root)})
    below = {blob.digest for image in images if image.digest in roots for blob in image.blobs}
    return {digest for digest in blobs if digest in named} | below


def _mark_shared(image: PlatformImage, shared: set[Digest]) -> PlatformImage:
    blobs = [replace(blob, is_shared=blob.digest in shared) for blob in image.blobs]
    return replace(image, blobs=blobs)


def _platform(entry: dict[str, Any]) -> str:
    """The platform of an index entry; for an attestation the kind in its annotation."""
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
