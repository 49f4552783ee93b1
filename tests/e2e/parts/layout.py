"""An OCI image layout on disk: the source of truth that pulled bytes are compared with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Descriptor = dict[str, Any]

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
MANIFEST_TYPES = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)


def digest_of(data: bytes) -> str:
    """Return the digest as registries spell it."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def encode(value: object) -> bytes:
    """Return canonical JSON, so that equal images get equal digests."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def is_manifest(descriptor: Descriptor) -> bool:
    """Return whether the content is a manifest or index, which registries serve at other paths than blobs."""
    return descriptor["mediaType"] in MANIFEST_TYPES


class Layout:
    """One image (any tree of descriptors) in a directory of content named by digest.

    root/blobs/sha256/<hex>
    """

    def __init__(self, directory: Path) -> None:
        self._blobs = directory / "blobs" / "sha256"
        self._blobs.mkdir(parents=True)
        self.root: Descriptor = {}

    def add(self, data: bytes, media_type: str, **more: Any) -> Descriptor:
        """Store content and return its descriptor."""
        digest = digest_of(data)
        (self._blobs / digest.removeprefix("sha256:")).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data), **more}

    def add_json(self, value: object, media_type: str, **more: Any) -> Descriptor:
        """Store a JSON document and return its descriptor."""
        return self.add(encode(value), media_type, **more)

    def read(self, descriptor: Descriptor) -> bytes:
        """Return the content of a descriptor."""
        return self.read_digest(descriptor["digest"])

    def read_digest(self, digest: str) -> bytes:
        """Return the content of a digest."""
        return (self._blobs / digest.removeprefix("sha256:")).read_bytes()

    def children(self, descriptor: Descriptor) -> list[Descriptor]:
        """Return the descriptors of a manifest or index, in its order; none for a blob."""
        if not is_manifest(descriptor):
            return []
        document = json.loads(self.read(descriptor))
        config = [document["config"]] if "config" in document else []
        return [*document.get("manifests", []), *config, *document.get("layers", [])]

    def walk(self, start: Descriptor | None = None) -> Iterator[Descriptor]:
        """Yield everything below `start` (default: the root), children first, each digest once."""
        seen: set[str] = set()

        def visit(descriptor: Descriptor) -> Iterator[Descriptor]:
            if descriptor["digest"] in seen:
                return
            seen.add(descriptor["digest"])
            for child in self.children(descriptor):
                yield from visit(child)
            yield descriptor

        yield from visit(start or self.root)

    def manifests(self) -> list[Descriptor]:
        """Return every manifest and index of the image."""
        return [each for each in self.walk() if is_manifest(each)]

    def blobs(self, start: Descriptor | None = None) -> list[Descriptor]:
        """Return every distinct config and layer below `start`."""
        return [each for each in self.walk(start) if not is_manifest(each)]

    def for_platform(self, architecture: str) -> Descriptor:
        """Return the manifest that a client of this architecture chooses from the index."""
        found = [
            each
            for each in self.children(self.root)
            if each.get("platform", {}).get("architecture") == architecture
        ]
        return found[0] if found else self.root
