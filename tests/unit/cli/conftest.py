"""A small store, as a server leaves it, and the options that select it."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from regmirror.blobs.local import LocalBlobStore
from regmirror.cli.context import Context
from regmirror.metadata.store import MetadataStore
from regmirror.metadata.upgrade import database_path, upgrade
from regmirror.oci.manifests import OCI_INDEX, OCI_MANIFEST, Manifest, references
from regmirror.oci.names import Digest, Repository, Tag

ALPINE = Repository("docker.io", "library/alpine")
LAYER, MISSING = b"layer" * 100, b"not stored"
CONFIG = json.dumps(
    {
        "os": "linux",
        "architecture": "amd64",
        "created": "2024-01-01T00:00:00Z",
        "config": {"Labels": {"title": "x"}},
        "history": [{"created_by": "ADD file"}, {"comment": "empty", "empty_layer": True}, "malformed"],
    }
).encode()


def manifest_of(*layers: bytes) -> Manifest:
    """The manifest of an image with ``CONFIG`` and these layers."""
    config, *others = [{"digest": Digest.of(data), "size": len(data)} for data in (CONFIG, *layers)]
    payload = json.dumps({"schemaVersion": 2, "config": config, "layers": others}).encode()
    return Manifest(Digest.of(payload), OCI_MANIFEST, payload)


def index_of(*manifests: Manifest) -> Manifest:
    """An index of these manifests and of an attestation that is not stored."""
    entries: list[dict[str, object]] = [
        {"digest": item.digest, "size": item.size, "platform": {"os": "linux", "architecture": "amd64"}}
        for item in manifests
    ]
    kind = {"vnd.docker.reference.type": "attestation-manifest"}
    entries.append({"digest": Digest.of(b"attestation"), "size": 7, "annotations": kind})
    payload = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    return Manifest(Digest.of(payload), OCI_INDEX, payload)


def save(root: Path, tag: str, manifest: Manifest, *blobs: bytes) -> None:
    """Store a manifest under a tag of ``ALPINE``, and its blobs."""

    async def work() -> None:
        metadata = MetadataStore(database_path(root))
        store = LocalBlobStore(root)
        try:
            for data in blobs:
                digest = Digest.of(data)
                staged = root / "staging" / digest.encoded
                staged.parent.mkdir(exist_ok=True)
                staged.write_bytes(data)
                await store.commit(staged, digest)
                await metadata.save_blob(digest, len(data), [ALPINE])
            found = references(json.loads(manifest.payload))
            await metadata.save_manifest(ALPINE, manifest, found, Tag(tag))
        finally:
            await metadata.close()

    asyncio.run(work())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The storage directory: ``alpine:3`` lacks one of its two layers."""
    directory = tmp_path / "data"
    directory.mkdir()
    LocalBlobStore(directory).prepare()
    upgrade(database_path(directory))
    save(directory, "3", manifest_of(LAYER, MISSING), CONFIG, LAYER)
    return directory


@pytest.fixture
def context(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """Options that select the store and print JSON."""
    for name in [name for name in os.environ if name.startswith("REGMIRROR_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mirror.toml"
    path.write_text(f'[storage]\npath = "{root}"\n[gc]\ngrace = "0"\n')
    return Context(str(path), json=True)
