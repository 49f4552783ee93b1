"""Sample images, built without network, identical in every run: one of each kind that registries store."""

from __future__ import annotations

import gzip
import io
import platform
import random
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.parts.layout import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Layout,
    digest_of,
)

CREATED = "2024-01-01T00:00:00Z"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
NATIVE = ARCHITECTURES.get(platform.machine(), platform.machine())
PLATFORMS: tuple[Descriptor, ...] = (
    {"architecture": "amd64", "os": "linux"},
    {"architecture": "arm64", "os": "linux", "variant": "v8"},
    {"architecture": "arm", "os": "linux", "variant": "v7"},
)
MIB = 1 << 20


@dataclass(frozen=True)
class Kind:
    """The media types of one family of images."""

    index: str
    manifest: str
    config: str
    layer: str


OCI = Kind(OCI_INDEX, OCI_MANIFEST, OCI_CONFIG, "application/vnd.oci.image.layer.v1.tar+gzip")
OCI_ZSTD = Kind(OCI_INDEX, OCI_MANIFEST, OCI_CONFIG, "application/vnd.oci.image.layer.v1.tar+zstd")
DOCKER = Kind(
    DOCKER_LIST,
    DOCKER_MANIFEST,
    "application/vnd.docker.container.image.v1+json",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
)


def pack(files: dict[str, bytes]) -> bytes:
    """Return a tar archive of executable files; a path that ends in `/` is a directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path.rstrip("/"))
            entry.mode = 0o755
            entry.size = len(content)
            entry.type = tarfile.DIRTYPE if path.endswith("/") else tarfile.REGTYPE
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def noise(seed: int, size: int) -> bytes:
    """Return bytes that do not compress, so that a layer keeps its size."""
    return random.Random(seed).randbytes(size)


def busybox_layer() -> bytes:
    """Return a root file system with a shell, taken from this machine's static busybox."""
    found = shutil.which("busybox", path="/bin:/usr/bin")
    assert found, "busybox-static is not installed"
    directories = dict.fromkeys(("bin/", "dev/", "etc/", "proc/", "sys/", "tmp/"), b"")
    return pack({**directories, "bin/sh": Path(found).read_bytes()})


def gzipped(data: bytes) -> bytes:
    """Compress without a time stamp: the digest depends on the content alone."""
    return gzip.compress(data, compresslevel=6, mtime=0)


def zstd_framed(data: bytes) -> bytes:
    """Wrap data into a valid zstd frame of raw blocks (RFC 8878 §3.1.1): no compressor is needed for that."""
    largest = 128 * 1024
    blocks = [data[start : start + largest] for start in range(0, len(data), largest)]
    frame = [b"\x28\xb5\x2f\xfd", b"\xa0", len(data).to_bytes(4, "little")]
    for number, block in enumerate(blocks, 1):
        is_last = int(number == len(blocks))
        frame += [(len(block) << 3 | is_last).to_bytes(3, "little"), block]
    return b"".join(frame)


def add_image(
    layout: Layout,
    layers: Sequence[bytes],
    *,
    target: Descriptor,
    kind: Kind = OCI,
    compress: Callable[[bytes], bytes] = gzipped,
) -> Descriptor:
    """Add an image of one platform and return the descriptor of its manifest."""
    config = {
        **target,
        "created": CREATED,
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
        "history": [{"created": CREATED, "created_by": f"layer {number}"} for number in range(len(layers))],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": kind.manifest,
        "config": layout.add_json(config, kind.config),
        "layers": [layout.add(compress(layer), kind.layer) for layer in layers],
    }
    return layout.add_json(manifest, kind.manifest, platform=target)


def add_index(layout: Layout, manifests: Sequence[Descriptor], kind: Kind = OCI) -> Descriptor:
    """Add an index (manifest list) of the given manifests."""
    index = {"schemaVersion": 2, "mediaType": kind.index, "manifests": list(manifests)}
    return layout.add_json(index, kind.index)


def add_attestation(layout: Layout, image: Descriptor) -> Descriptor:
    """Add an attestation as build tools do: a manifest for the platform `unknown/unknown`."""
    statement = {"_type": "https://in-toto.io/Statement/v0.1", "subject": [{"digest": image["digest"]}]}
    layer = layout.add_json(statement, "application/vnd.in-toto+json")
    unknown = {"architecture": "unknown", "os": "unknown"}
    config = {**unknown, "config": {}, "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": layout.add_json(config, OCI_CONFIG),
        "layers": [layer],
    }
    marks = {
        "vnd.docker.reference.digest": image["digest"],
        "vnd.docker.reference.type": "attestation-manifest",
    }
    return layout.add_json(manifest, OCI_MANIFEST, platform=unknown, annotations=marks)


def layers_for(target: Descriptor) -> list[bytes]:
    """Return two layers: a busybox that runs on this machine's own platform, noise for the others."""
    name = target["architecture"]
    base = busybox_layer() if name == NATIVE else pack({f"{name}.bin": noise(len(name), 100_000)})
    return [base, pack({"etc/": b"", "etc/platform": f"built for {name}\n".encode()})]


def fill_multi(layout: Layout, kind: Kind) -> Descriptor:
    """An image for three platforms."""
    return add_index(
        layout,
        [add_image(layout, layers_for(each), target=each, kind=kind) for each in PLATFORMS],
        kind,
    )


def fill_attested(layout: Layout) -> Descriptor:
    """An image for three platforms, each with its attestation."""
    images = [add_image(layout, layers_for(each), target=each) for each in PLATFORMS]
    return add_index(layout, [*images, *(add_attestation(layout, each) for each in images)])


def native() -> Descriptor:
    """Return the platform of this machine."""
    return next(each for each in PLATFORMS if each["architecture"] == NATIVE)


def fill_zstd(layout: Layout) -> Descriptor:
    """An image with layers that are not gzip."""
    return add_image(layout, layers_for(native()), target=native(), kind=OCI_ZSTD, compress=zstd_framed)


def fill_nested(layout: Layout) -> Descriptor:
    """An index inside an index."""
    return add_index(layout, [add_index(layout, [add_image(layout, layers_for(native()), target=native())])])


def fill_artifact(layout: Layout) -> Descriptor:
    """No image at all: an empty config, a text file, and a file of no bytes."""
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.example.document",
        "config": layout.add(b"{}", "application/vnd.oci.empty.v1+json"),
        "layers": [layout.add(b"hello\n", "text/plain"), layout.add(b"", "text/plain")],
    }
    return layout.add_json(manifest, OCI_MANIFEST)


def fill_empty(layout: Layout) -> Descriptor:
    """One empty layer twice, around a layer with content."""
    nothing = pack({})
    return add_image(layout, [nothing, layers_for(native())[1], nothing], target=native(), kind=DOCKER)


def fill_big(layout: Layout) -> Descriptor:
    """An image whose layers take a moment to transfer."""
    layers = [pack({f"noise{seed}": noise(seed, 4 * MIB)}) for seed in range(1, 4)]
    return add_image(layout, [busybox_layer(), *layers], target=native())


def fill_app(layout: Layout) -> Descriptor:
    """An image that shares nothing with the others."""
    return add_image(layout, [pack({"app": noise(99, 50_000)})], target=native())


RECIPES: dict[str, Callable[[Layout], Descriptor]] = {
    "multi": fill_attested,
    "dlist": lambda layout: fill_multi(layout, DOCKER),
    "zstd": fill_zstd,
    "nested": fill_nested,
    "artifact": fill_artifact,
    "empty": fill_empty,
    "big": fill_big,
    "app": fill_app,
}


def make_images(directory: Path) -> dict[str, Layout]:
    """Make every sample image, each in its own layout."""
    images = {}
    for name, fill in RECIPES.items():
        images[name] = Layout(directory / name)
        images[name].root = fill(images[name])
    return images
