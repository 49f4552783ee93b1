"""Generated images in the directory that the upstream serves.

The hexadecimal digest names each file and the one tag of each image, so that the upstream can send
`Docker-Content-Digest` without a table.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ACCEPT = f"{MANIFEST}, */*"  # sent by every client; without it docker-registry converts manifests
MANIFEST_SIZE = 3_000  # bytes, as in well-known images
_PIECE = 1 << 20


@dataclass(frozen=True)
class Blob:
    digest: str
    size: int


@dataclass(frozen=True)
class Image:
    """One repository with one manifest under one tag; the first blob is the config."""

    repository: str
    tag: str
    blobs: tuple[Blob, ...]

    @property
    def digest(self) -> str:
        return f"sha256:{self.tag}"

    @property
    def size(self) -> int:
        """Total bytes of the blobs."""
        return sum(blob.size for blob in self.blobs)

    def manifest_path(self, *, by_digest: bool = False) -> str:
        return f"/v2/{self.repository}/manifests/{self.digest if by_digest else self.tag}"

    def blob_paths(self) -> list[str]:
        return [f"/v2/{self.repository}/blobs/{blob.digest}" for blob in self.blobs]


class Content:
    """Creates and removes images under ``root``; no two images share a blob."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._numbers = itertools.count()
        self._noise = os.urandom(_PIECE)
        (root / "blobs").mkdir(parents=True)
        (root / "manifests").mkdir()

    def make_image(self, layers: Sequence[int]) -> Image:
        """Create an image with layers of these sizes in bytes."""
        repository = f"bench/image{next(self._numbers)}"
        blobs = (self._make_blob(2_000), *map(self._make_blob, layers))
        data = _write_manifest(blobs)
        tag = hashlib.sha256(data).hexdigest()
        (self.root / "manifests" / tag).write_bytes(data)
        return Image(repository, tag, blobs)

    def remove(self, image: Image) -> None:
        """Delete the image from the upstream; servers that cached it keep it."""
        (self.root / "manifests" / image.tag).unlink()
        for blob in image.blobs:
            self._path(blob.digest).unlink()

    def _make_blob(self, size: int) -> Blob:
        """Create a blob of repeated noise; its first 64 bytes are unique."""
        partial, left, digest = self.root / "partial", size, hashlib.sha256()
        with partial.open("wb") as file:
            piece = os.urandom(64) + self._noise[64:]
            while left:
                piece = piece[:left]
                file.write(piece)
                digest.update(piece)
                left -= len(piece)
                piece = self._noise
        blob = Blob(f"sha256:{digest.hexdigest()}", size)
        partial.rename(self._path(blob.digest))
        return blob

    def _path(self, digest: str) -> Path:
        return self.root / "blobs" / digest.removeprefix("sha256:")


def _write_manifest(blobs: Sequence[Blob]) -> bytes:
    """The manifest as JSON, padded to ``MANIFEST_SIZE`` by an annotation."""
    types = ["config.v1+json", *["layer.v1.tar"] * (len(blobs) - 1)]
    config, *layers = (
        {"mediaType": f"application/vnd.oci.image.{kind}", "digest": blob.digest, "size": blob.size}
        for kind, blob in zip(types, blobs, strict=True)
    )
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
    padding = MANIFEST_SIZE - len(json.dumps(manifest | {"annotations": {"padding": ""}}))
    return json.dumps(manifest | {"annotations": {"padding": "x" * padding}}).encode()
