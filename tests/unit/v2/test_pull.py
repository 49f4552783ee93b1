"""The responses to requests for manifests and blobs."""

from __future__ import annotations

import pytest

from tests.fake_registry import FakeRegistry, Image
from tests.mirror_fixture import InProcessMirror

TAG = "/v2/team/app/manifests/1"
LAYER = bytes(range(256)) * 4


@pytest.fixture
def image(upstream: FakeRegistry) -> Image:
    return upstream.add_image("team/app", "1", [LAYER])


@pytest.fixture
def blob(image: Image) -> str:
    return f"/v2/team/app/blobs/{image.layer_digests[0]}"


@pytest.fixture
async def warm(mirror: InProcessMirror, blob: str) -> InProcessMirror:
    """The mirror with manifest and layer stored."""
    await mirror.get(TAG)
    await mirror.get(blob)
    return mirror


async def test_a_head_of_a_blob_has_its_length(warm: InProcessMirror, blob: str) -> None:
    response = await warm.head(blob)
    assert (response.status, response.body) == (200, b"")
    assert response.headers["Content-Length"] == str(len(LAYER))
    assert response.headers["Accept-Ranges"] == "bytes"


async def test_a_head_of_a_range_has_the_length_of_the_range(warm: InProcessMirror, blob: str) -> None:
    response = await warm.head(blob, {"Range": "bytes=10-19"})
    assert response.status == 206
    assert response.headers["Content-Length"] == "10"
    assert response.headers["Content-Range"] == f"bytes 10-19/{len(LAYER)}"


async def test_a_head_of_several_ranges_is_one_of_the_whole(warm: InProcessMirror, blob: str) -> None:
    response = await warm.head(blob, {"Range": "bytes=0-1,5-6"})
    assert (response.status, response.headers["Content-Length"]) == (200, str(len(LAYER)))


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_copy_of_the_client_is_not_sent_again(
    warm: InProcessMirror, image: Image, blob: str, method: str
) -> None:
    """Neither of a manifest nor of a blob."""
    for path, digest in ((TAG, image.digest), (blob, image.layer_digests[0])):
        response = await warm.request(method, path, {"If-None-Match": f'"{digest}"'})
        assert (response.status, response.body) == (304, b"")
        assert response.headers["ETag"] == f'"{digest}"'


async def test_a_range_of_another_version_is_the_whole_blob(warm: InProcessMirror, blob: str) -> None:
    """If-Range of another entity tag."""
    response = await warm.get(blob, {"Range": "bytes=0-1", "If-Range": '"other"'})
    assert (response.status, response.body) == (200, LAYER)


async def test_a_range_behind_the_end_is_416(warm: InProcessMirror, blob: str) -> None:
    response = await warm.get(blob, {"Range": "bytes=5000-"})
    assert response.status == 416
    assert response.headers["Content-Range"] == f"bytes */{len(LAYER)}"


async def test_several_ranges_are_parts(warm: InProcessMirror, blob: str) -> None:
    response = await warm.get(blob, {"Range": "bytes=0-1,5-6"})
    assert response.status == 206
    assert response.body.count(b"Content-Range: bytes ") == 2
