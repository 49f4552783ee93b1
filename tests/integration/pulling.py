"""Pulling an image as clients do: the manifest by its tag, then everything it names."""

from __future__ import annotations

from tests.fake_registry import Image
from tests.mirror_fixture import RunningMirror, until


async def pull_image(mirror: RunningMirror, image: Image, name: str = "team/app", tag: str = "1") -> None:
    """Pull it, and wait until all of it is stored."""
    answer = await mirror.get(f"/v2/{name}/manifests/{tag}")
    assert answer.body == image.manifest, answer
    for digest in image.blob_digests:
        assert (await mirror.get(f"/v2/{name}/blobs/{digest}")).status == 200
    await until(lambda: set(image.blob_digests) <= mirror.stored(), "the image is stored")
    await mirror.running._resources.downloads.drain()  # and written down
