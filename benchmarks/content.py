"""Images that are made up, in the tree of files that the upstream serves.

A file is named by the hexadecimal of its digest, and so is the one tag of each image. The upstream
then needs no table to know the digest of what it serves.
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
ACCEPT = f"{MANIFEST}, */*"  # what every client here says; without it docker-registry converts
MANIFEST_SIZE = 3_000  # bytes; those of well-known images have as many
_PIECE = 1 << 20


@dataclass(frozen=True)
class Blob:
    digest: str
    size: int


@dataclass(frozen=True)
class Image:
    """One repository with one manifest under one tag; the first blob is the configuration."""

    repository: str
    tag: str
    blobs: tuple[Blob, ...]

    @property
    def digest(self) -> str:
        return f"sha256:{self.tag}"

    @property
    def size(self) -> int:
        """Bytes of all blobs."""
        return sum(blob.size for blob in self.blobs)

    def manifest_path(self, *, by_digest: bool = False) -> str:
        return f"/v2/{self.repository}/manifests/{self.digest if by_digest else self.tag}"

    def blob_paths(self) -> list[str]:
        return [f"/v2/{self.repository}/blobs/{blob.digest}" for blob in self.blobs]


class Content:
    """Makes images under ``root``, each of them new, and takes them away again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._numbers = itertools.count()
        self._noise = os.urandom(_PIECE)
        (root / "blobs").mkdir(parents=True)
        (root / "manifests").mkdir()

    def make_image(self, layers: Sequence[int]) -> Image:
        """An image that nobody has seen, with layers of these sizes."""
        repository = f"bench/image{next(self._numbers)}"
        blobs = (self._make_blob(2_000), *map(self._make_blob, layers))
        data = _write_manifest(blobs)
        tag = hashlib.sha256(data).hexdigest()
        (self.root / "manifests" / tag).write_bytes(data)
        return Image(repository, tag, blobs)

    def remove(self, image: Image) -> None:
        """Free the room on the disk; servers that have it keep it."""
        (self.root / "manifests" / image.tag).unlink()
        for blob in image.blobs:
            self._path(blob.digest).unlink()

    def _make_blob(self, size: int) -> Blob:
        """The same noise over and over, behind a beginning of its own."""
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
    """As large as a real one, by an annotation that means nothing."""
    types = ["config.v1+json", *["layer.v1.tar"] * (len(blobs) - 1)]
    config, *layers = (
        {"mediaType": f"application/vnd.oci.image.{kind}", "digest": blob.digest, "size": blob.size}
        for kind, blob in zip(types, blobs, strict=True)
    )
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
    room = MANIFEST_SIZE - len(json.dumps(manifest | {"annotations": {"padding": ""}}))
    return json.dumps(manifest | {"annotations": {"padding": "x" * room}}).encode()
