"""The content of a fake registry: blobs, manifests and tags, by repository."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.fake_registry.sources import InMemory, Repeated, Source, as_source

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


@dataclass(frozen=True)
class StoredManifest:
    """A manifest byte for byte, with the media type that it is served under."""

    body: bytes
    media_type: str
    digest: str

    @property
    def document(self) -> dict[str, Any]:
        """The parsed body; empty when it is no JSON object."""
        try:
            parsed = json.loads(self.body)
        except ValueError:
            return {}
        return parsed if isinstance(parsed, dict) else {}


@dataclass
class RepositoryContent:
    blobs: dict[str, Source] = field(default_factory=dict)
    manifests: dict[str, StoredManifest] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def find_manifest(self, reference: str) -> StoredManifest | None:
        return self.manifests.get(self.tags.get(reference, reference))


@dataclass(frozen=True)
class Image:
    """An image as it was added. layers are the bytes or sources that the digests name."""

    repository: str
    tag: str | None
    digest: str
    manifest: bytes
    media_type: str
    config_digest: str
    config: bytes
    layer_digests: tuple[str, ...]
    layers: tuple[bytes | Source, ...]
    platform: Mapping[str, str]

    @property
    def blob_digests(self) -> tuple[str, ...]:
        """Config first, then the layers."""
        return (self.config_digest, *self.layer_digests)


@dataclass(frozen=True)
class Index:
    """An index as it was added."""

    repository: str
    tag: str | None
    digest: str
    manifest: bytes
    media_type: str
    images: tuple[Image, ...]


class Content:
    """The content of a registry. Changes show in the next response."""

    def __init__(self) -> None:
        self.repositories: dict[str, RepositoryContent] = {}

    def repository(self, name: str) -> RepositoryContent:
        """The content of a repository, which exists from now on."""
        return self.repositories.setdefault(name, RepositoryContent())

    def add_blob(self, repository: str, data: bytes | Source, algorithm: str = "sha256") -> str:
        """Add a blob, and return its digest."""
        source = as_source(data)
        digest = source.digest(algorithm)
        self.repository(repository).blobs[digest] = source
        return digest

    def add_big_blob(self, repository: str, size: int, seed: int = 0, algorithm: str = "sha256") -> str:
        """Add a blob of any size, generated while it is sent, and return its digest."""
        return self.add_blob(repository, Repeated(size, seed), algorithm)

    def remove_blob(self, repository: str, digest: str) -> None:
        del self.repository(repository).blobs[digest]

    def add_manifest(
        self,
        repository: str,
        payload: bytes | Mapping[str, Any],
        media_type: str = MANIFEST,
        tag: str | None = None,
        algorithm: str = "sha256",
    ) -> str:
        """Add a manifest, tag it if a tag is given, and return its digest.

        A mapping is written with an unusual indentation: serialising it again changes the digest.
        """
        body = payload if isinstance(payload, bytes) else json.dumps(payload, indent=3).encode()
        digest = InMemory(body).digest(algorithm)
        content = self.repository(repository)
        content.manifests[digest] = StoredManifest(body, media_type, digest)
        if tag:
            content.tags[tag] = digest
        return digest

    def add_image(
        self,
        repository: str,
        tag: str | None = None,
        layers: Sequence[bytes | Source] = (b"layer",),
        config: Mapping[str, Any] | None = None,
        *,
        docker: bool = False,
        platform: str = "linux/amd64",
        algorithm: str = "sha256",
        **extra: Any,
    ) -> Image:
        """Add an image with its blobs. `extra` are further members of the manifest."""
        system = dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))
        config_body = json.dumps({**system, **(config or {})}).encode()
        sources = [as_source(layer) for layer in layers]
        config_digest = self.add_blob(repository, config_body, algorithm)
        layer_digests = tuple(self.add_blob(repository, source, algorithm) for source in sources)
        layer_type = DOCKER_LAYER if docker else LAYER
        media_type = DOCKER_MANIFEST if docker else MANIFEST
        manifest = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": descriptor(DOCKER_CONFIG if docker else CONFIG, config_digest, len(config_body)),
            "layers": [
                descriptor(layer_type, digest, source.size)
                for digest, source in zip(layer_digests, sources, strict=True)
            ],
            **extra,
        }
        digest = self.add_manifest(repository, manifest, media_type, tag, algorithm)
        return Image(
            repository=repository,
            tag=tag,
            digest=digest,
            manifest=self.repository(repository).manifests[digest].body,
            media_type=media_type,
            config_digest=config_digest,
            config=config_body,
            layer_digests=layer_digests,
            layers=tuple(layers),
            platform=system,
        )

    def add_index(
        self,
        repository: str,
        tag: str | None = None,
        images: Sequence[Image] = (),
        *,
        docker: bool = False,
        algorithm: str = "sha256",
        **extra: Any,
    ) -> Index:
        """Add an index of images. `extra` are further members of it."""
        media_type = DOCKER_INDEX if docker else INDEX
        index = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "manifests": [
                descriptor(image.media_type, image.digest, len(image.manifest))
                | {"platform": dict(image.platform)}
                for image in images
            ],
            **extra,
        }
        digest = self.add_manifest(repository, index, media_type, tag, algorithm)
        body = self.repository(repository).manifests[digest].body
        return Index(repository, tag, digest, body, media_type, tuple(images))

    def add_referrer(
        self,
        repository: str,
        subject: str,
        artifact_type: str = "application/vnd.example.sbom",
        data: bytes = b"{}",
        **extra: Any,
    ) -> str:
        """Add an artifact whose subject is the manifest of that digest, and return its own digest."""
        known = self.repository(repository).manifests.get(subject)
        about = descriptor(known.media_type if known else MANIFEST, subject, len(known.body) if known else 0)
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": artifact_type,
            "config": descriptor(EMPTY, self.add_blob(repository, b"{}"), 2),
            "layers": [descriptor(artifact_type, self.add_blob(repository, data), len(data))],
            "subject": about,
            **extra,
        }
        return self.add_manifest(repository, manifest, MANIFEST)

    def add_referrers_tag(self, repository: str, subject: str) -> str:
        """Tag the referrers so far as clients do where the API is missing; return the index's digest."""
        index = referrers_index(self.repository(repository), subject, [])
        return self.add_manifest(repository, index, INDEX, tag=subject.replace(":", "-", 1))

    def move_tag(self, repository: str, tag: str, digest: str) -> None:
        """Let the tag, new or known, name another manifest from the next request on."""
        if digest not in self.repository(repository).manifests:
            raise KeyError(f"{repository} has no manifest {digest}")
        self.repository(repository).tags[tag] = digest

    def remove_tag(self, repository: str, tag: str) -> None:
        del self.repository(repository).tags[tag]

    def remove_manifest(self, repository: str, digest: str) -> None:
        """Remove a manifest and the tags that name it."""
        content = self.repository(repository)
        del content.manifests[digest]
        content.tags = {tag: named for tag, named in content.tags.items() if named != digest}


def descriptor(media_type: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def referrers_index(
    content: RepositoryContent, subject: str, artifact_types: Sequence[str]
) -> dict[str, Any]:
    """The index of all manifests with this subject; no artifact types mean all of them."""
    found = []
    for stored in content.manifests.values():
        document = stored.document
        if (document.get("subject") or {}).get("digest") != subject:
            continue
        entry = descriptor(stored.media_type, stored.digest, len(stored.body))
        kind = document.get("artifactType") or document.get("config", {}).get("mediaType")
        if kind:
            entry["artifactType"] = kind
        if "annotations" in document:
            entry["annotations"] = document["annotations"]
        if not artifact_types or kind in artifact_types:
            found.append(entry)
    return {"schemaVersion": 2, "mediaType": INDEX, "manifests": found}
