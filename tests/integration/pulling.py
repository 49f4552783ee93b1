"""Pulling an image as clients do: the manifest by its tag, then everything it names."""

from __future__ import annotations

from tests.fake_registry import Image
from tests.mirror_fixture import InProcessMirror, wait_until


async def pull_image(mirror: InProcessMirror, image: Image, name: str = "team/app", tag: str = "1") -> None:
    """Pull it, and wait until all of it is stored."""
    response = await mirror.get(f"/v2/{name}/manifests/{tag}")
    assert response.body == image.manifest, response
    for digest in image.blob_digests:
        assert (await mirror.get(f"/v2/{name}/blobs/{digest}")).status == 200
    await wait_until(lambda: set(image.blob_digests) <= mirror.stored(), "the image is stored")
    await mirror.worker._resources.downloads.drain()  # and written down
