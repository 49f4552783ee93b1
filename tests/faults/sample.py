"""The image that the tests pull, and the pulling of it."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from tests.fake_registry import FakeRegistry, Image, random_bytes
from tests.mirror_fixture import Client, Response

SIZE = 2 << 20
HALF = SIZE // 2
LAYER = random_bytes(SIZE)
OTHER = random_bytes(SIZE, seed=1)  # of another digest, since one digest would be one download
PATIENCE = 30.0  # seconds until a mirror must have noticed that its upstream is back


def add_sample(registry: FakeRegistry, layer: bytes = LAYER) -> Image:
    """The image ``team/app:1``, with one layer that is large enough to be interrupted."""
    return registry.add_image("team/app", "1", [layer])


def add_small(registry: FakeRegistry) -> Image:
    """The image ``team/small:1``: one to store completely before any fault."""
    return registry.add_image("team/small", "1", [b"small"])


def paths(image: Image, upstream: str) -> tuple[str, str]:
    """Where a mirror has the image of one of its upstreams: its tag, its layer."""
    base = f"/v2/{upstream}/{image.repository}"
    return f"{base}/manifests/1", f"{base}/blobs/{image.layer_digests[0]}"


async def store(client: Client, image: Image, upstream: str) -> str:
    """Pull a complete image, since only those outlive their upstream (B39); return the path of its tag."""
    tag, layer = paths(image, upstream)
    config = layer.replace(image.layer_digests[0], image.config_digest)
    for path in (tag, config, layer):
        assert (await client.get(path)).status == 200
    return tag


def is_stale(response: Response, image: Image) -> bool:
    """Whether this is the image's manifest, marked as stale because its upstream fails."""
    marked = response.headers.get("Cache-Status") == "regmirror; hit; detail=stale"
    return (
        response.status == 200
        and response.body == image.manifest
        and marked
        and "Warning" in response.headers
    )


async def read_rest(response: aiohttp.ClientResponse) -> bytes | None:
    """The remaining body, or None if it ends short of its Content-Length."""
    try:
        return await response.read()
    except aiohttp.ClientPayloadError:
        return None


async def pull_again(client: Client, path: str) -> Response:
    """Repeat the request until it succeeds; the upstream is back."""
    async with asyncio.timeout(PATIENCE):
        while (response := await client.get(path)).status != 200:
            assert response.status in (502, 503, 504), response
            await asyncio.sleep(0.2)
    return response


async def pulls(client: Client, image: Image, upstream: str) -> bool:
    """Whether the image can be pulled byte for byte from an upstream that works."""
    tag, layer = paths(image, upstream)
    responses = [await client.get(tag), await client.get(layer)]
    return [(got.status, got.body) for got in responses] == [(200, image.manifest), (200, OTHER)]


def reason(response: Response) -> Any:
    """The `reason` of an error response."""
    return response.json()["errors"][0]["detail"].get("reason")
