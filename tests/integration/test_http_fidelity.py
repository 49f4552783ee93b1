"""HTTP as clients of registries expect it: headers, ranges, conditions, connections, TLS."""

import asyncio
import ssl
from itertools import product

import pytest
import trustme

from regmirror.server.app import open_http_server, open_worker, prepare
from regmirror.server.listener import bind
from regmirror.telemetry.events import DownloadEnded
from tests.fake_registry import DOCKER_MANIFEST, INDEX, MANIFEST, random_bytes
from tests.mirror_fixture import make_config, run_program

TAG = "/v2/team/app/manifests/1"
SIZE = 10_000
EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
VARY = {"Date", "Cache-Status"}  # differ between one answer and the next


@pytest.fixture
def image(upstream):
    return upstream.add_image("team/app", "1", [random_bytes(SIZE), b""])


@pytest.fixture
def blob(image):
    return f"/v2/team/app/blobs/{image.layer_digests[0]}"


@pytest.fixture
def layer(image):
    return image.layers[0]


@pytest.fixture
async def warm(mirror, image):
    """The mirror with the whole image stored."""
    await mirror.get(TAG)
    for digest in image.blob_digests:
        await mirror.get(f"/v2/team/app/blobs/{digest}")
    await mirror.events.wait_for(DownloadEnded, 3)
    return mirror


def resources(response):
    return {name: value for name, value in response.headers.items() if name not in VARY}


def request(path, *lines, method="GET", version="HTTP/1.1"):
    """A request as bytes; it asks for the connection's end unless it says otherwise."""
    given = "".join(f"{line}\r\n" for line in lines)
    if "Connection:" not in given and version == "HTTP/1.1":
        given += "Connection: close\r\n"
    return f"{method} {path} {version}\r\nHost: mirror\r\n{given}\r\n".encode()


# --- HEAD ---


@pytest.mark.parametrize(
    "path", ["manifest", "digest", "config", "layer", "empty", "missing", "tags", "catalog"]
)
@pytest.mark.parametrize("state", ["cold", "warm"])
async def test_head_equals_get(start_mirror, upstream, image, path, state):
    """B48: the same status and headers, length included, and no body; cold and warm."""
    paths = {
        "manifest": TAG,
        "digest": f"/v2/team/app/manifests/{image.digest}",
        "config": f"/v2/team/app/blobs/{image.config_digest}",
        "layer": f"/v2/team/app/blobs/{image.layer_digests[0]}",
        "empty": f"/v2/team/app/blobs/{EMPTY}",
        "missing": "/v2/team/app/manifests/2",
        "tags": "/v2/team/app/tags/list",
        "catalog": "/v2/_catalog",
    }
    mirror = await start_mirror()
    if state == "warm":
        await mirror.get(paths[path])
        await mirror.get(paths[path])

    head = await mirror.head(f"{paths[path]}?ns=registry.test")
    get = await mirror.get(f"{paths[path]}?ns=registry.test")

    assert head.status == get.status
    assert resources(head) == resources(get)
    assert head.body == b""
    assert head.headers["Content-Length"] == str(len(get.body))


async def test_content_carries_what_clients_need(warm, image, blob, layer):
    """B48, B50, B51: digest, quoted entity tag, bare type, length, and the API's version."""
    manifest, part = await warm.get(TAG), await warm.get(blob)

    for response, digest, kind, body in (
        (manifest, image.digest, MANIFEST, image.manifest),
        (part, image.layer_digests[0], "application/octet-stream", layer),
    ):
        assert response.body == body
        assert response.headers["Docker-Content-Digest"] == digest
        assert response.headers["ETag"] == f'"{digest}"'
        assert response.headers["Content-Type"] == kind
        assert response.headers["Content-Length"] == str(len(body))
        assert "Transfer-Encoding" not in response.headers
    assert part.headers["Accept-Ranges"] == "bytes"
    assert part.headers["Cache-Control"] == "max-age=31536000"


async def test_a_head_of_an_empty_blob_says_so(mirror, image):
    """B48: Content-Length: 0, cold and warm."""
    await mirror.get(TAG)
    for _ in range(2):
        assert (await mirror.head(f"/v2/team/app/blobs/{EMPTY}")).headers["Content-Length"] == "0"
        assert (await mirror.get(f"/v2/team/app/blobs/{EMPTY}")).status == 200


PATHS = [
    "/v2/",
    "/v2",
    "/registry.test/v2/",
    TAG,
    "/v2/team/app/manifests/2",
    "/v2/team/app/manifests/sha256:x",
    "/v2/Bad/manifests/1",
    f"/v2/team/app/blobs/{EMPTY}",
    f"/v2/team/app/blobs/sha256:{'0' * 64}",
    "/v2/team/app/blobs/uploads/",
    "/v2/team/app/tags/list",
    "/v2/team/app/tags/list?n=-1",
    f"/v2/team/app/referrers/sha256:{'0' * 64}",
    "/v2/_catalog",
    "/v2/what/is/this",
    "/v2/team/app/manifests/1?ns=evil.example",
]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS"])
async def test_every_answer_has_the_version_of_the_api(mirror, image, method):
    """B56: every status below /v2/, the method's refusal included; errors are JSON."""
    for path in PATHS:
        response = await mirror.request(method, path)

        assert response.headers["Docker-Distribution-Api-Version"] == "registry/2.0", path
        if response.status >= 400:
            assert response.headers["Content-Type"] == "application/json"
            assert method == "HEAD" or response.json()["errors"]
        if method not in ("GET", "HEAD"):
            assert response.status in (400, 404, 405), path
        if response.status == 405:
            assert response.headers["Allow"] == "GET, HEAD"
            assert method == "HEAD" or response.code == "UNSUPPORTED"


# --- conditions and ranges ---


@pytest.mark.parametrize("form", ['"{}"', "{}", 'W/"{}"', '"sha256:x", "{}"', "*"])
async def test_what_a_client_has_is_not_sent_again(warm, image, blob, form):
    """B50: 304 with entity tag and digest, and without a body; the connection goes on."""
    contents = ((TAG, image.digest), (blob, image.layer_digests[0]))
    for method, (path, digest) in product(("GET", "HEAD"), contents):
        response = await warm.request(method, path, {"If-None-Match": form.format(digest)})
        assert response.status == 304
        assert response.headers["ETag"] == f'"{digest}"'
        assert response.headers["Docker-Content-Digest"] == digest
        assert response.body == b""
        assert (await warm.request(method, path, {"If-None-Match": f'"{EMPTY}"'})).status == 200


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=9000-", 9000, SIZE),
        ("bytes=-10", SIZE - 10, SIZE),
        ("bytes=-20000", 0, SIZE),
        ("bytes=9990-20000", 9990, SIZE),
    ],
)
async def test_one_range(mirror, upstream, image, blob, layer, header, start, stop):
    """B49: single, open, suffix, past the end; first cold, then warm."""
    await mirror.get(TAG)
    for _ in ("cold", "warm"):
        response = await mirror.get(blob, {"Range": header})

        assert response.status == 206
        assert response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"
        assert response.headers["Content-Length"] == str(stop - start)
        assert response.body == layer[start:stop]
        await mirror.events.wait_for(DownloadEnded)
    assert upstream.count("blob") == 1


@pytest.mark.parametrize("header", ["bytes=500-0", f"bytes={SIZE}-", "bytes=20000-30000", "bytes=-0"])
async def test_a_range_outside_the_blob(warm, blob, header):
    """B49: 416 that says how large the blob is, and no header of content."""
    for method in ("GET", "HEAD"):
        response = await warm.request(method, blob, {"Range": header})

        assert response.status == 416
        assert response.headers["Content-Range"] == f"bytes */{SIZE}"
        assert "Docker-Content-Digest" not in response.headers
        assert response.headers["Content-Type"] == "application/json"


async def test_a_range_that_is_not_understood(warm, blob, layer):
    """B49: another unit or nonsense is ignored."""
    for header in ("chunks=0-1", "bytes=x", "bytes=1", "bytes=" + "1" * 5000 + "-", ""):
        response = await warm.get(blob, {"Range": header})

        assert (response.status, response.body) == (200, layer), header[:20]


@pytest.mark.parametrize(
    "ranges", [[(0, 100), (200, 300)], [(200, 300), (0, 100)], [(0, 100), (50, 150)], [(0, 5)] * 3]
)
async def test_several_ranges(mirror, image, blob, layer, ranges):
    """B49: a part for each, in their order, neither merged nor sorted; first cold, then warm."""
    await mirror.get(TAG)
    header = "bytes=" + ",".join(f"{start}-{stop - 1}" for start, stop in ranges)
    for _ in ("cold", "warm"):
        response = await mirror.get(blob, {"Range": header})

        assert response.status == 206
        assert response.headers["Content-Length"] == str(len(response.body))
        boundary = response.headers["Content-Type"].removeprefix("multipart/byteranges; boundary=")
        pieces = response.body.split(f"\r\n--{boundary}".encode())
        assert (pieces[0], pieces[-1]) == (b"", b"--\r\n")
        for piece, (start, stop) in zip(pieces[1:-1], ranges, strict=True):
            head, _, body = piece.partition(b"\r\n\r\n")
            assert f"Content-Range: bytes {start}-{stop - 1}/{SIZE}".encode() in head
            assert body == layer[start:stop]
        await mirror.events.wait_for(DownloadEnded)


async def test_if_range(warm, image, blob):
    """B49: a range counts if the client has a part of this very content."""
    own = f'"{image.layer_digests[0]}"'
    for said, status in ((own, 206), ('"sha256:other"', 200), ("Wed, 21 Oct 2015 07:28:00 GMT", 200)):
        assert (await warm.get(blob, {"Range": "bytes=0-9", "If-Range": said})).status == status


# --- content negotiation ---


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["Accept: */*"],
        ["Accept: application/json"],
        ["Accept: text/html"],
        [f"Accept: {DOCKER_MANIFEST}", "Accept: application/json", f"Accept: {INDEX}"],
        [f"Accept: {MANIFEST}, {INDEX};q=0.5"],
    ],
)
async def test_accept_changes_nothing(warm, image, layer, blob, lines):
    """B51: a digest names one byte string of one type, never encoded, on however many lines."""
    contents = ((TAG, image.manifest, MANIFEST), (blob, layer, "application/octet-stream"))
    encodings = ("gzip, zstd", "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5", "*", "identity;q=0")
    for encoding, (path, body, kind) in product(encodings, contents):
        received = await warm.send_raw(request(path, *lines, f"Accept-Encoding: {encoding}"))
        head, _, sent = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert sent == body
        assert f"Content-Type: {kind}\r\n".encode() in head
        assert b"Content-Encoding" not in head


async def test_upstreams_are_asked_for_every_kind(mirror, upstream, image):
    """B51: whatever the client accepts, since the answer is for all of them."""
    await mirror.send_raw(request(TAG, "Accept: application/json"))

    accepted = upstream.find("manifest")[0].headers["Accept"]
    assert all(kind in accepted for kind in (INDEX, MANIFEST, DOCKER_MANIFEST, "*/*"))
    assert upstream.find("manifest")[0].headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("docker", [True, False])
async def test_media_types_are_the_upstreams(mirror, upstream, docker):
    """B51, B1: of images and indexes, known and unknown, without a charset."""
    image = upstream.add_image("team/app", "image", docker=docker)
    index = upstream.add_index("team/app", "index", [image], docker=docker)
    upstream.add_manifest("team/app", {"schemaVersion": 2}, "application/vnd.example.new.v9+json", "new")

    for tag, kind in (("image", image.media_type), ("index", index.media_type)):
        assert (await mirror.get(f"/v2/team/app/manifests/{tag}")).headers["Content-Type"] == kind
    assert (await mirror.get("/v2/team/app/manifests/new")).headers["Content-Type"] == (
        "application/vnd.example.new.v9+json"
    )


# --- connections ---


async def test_http_1_0(warm, layer, blob):
    """B57: an answer with its length, and the connection's end."""
    received = await warm.send_raw(request(blob, version="HTTP/1.0"))

    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200")
    assert f"Content-Length: {SIZE}".encode() in head
    assert body == layer


async def test_connection_close(warm, layer, blob):
    """B57: old dockerds ask so for each request."""
    received = await warm.send_raw(request(blob, "Connection: close"))

    assert received.endswith(b"\r\n\r\n" + layer)


async def test_pipelining(warm, image, layer, blob):
    """B57: several requests at once on one connection are answered in their order."""
    first = request(TAG, "Connection: keep-alive")
    second = request(blob, "Connection: keep-alive")
    third = request("/v2/team/app/manifests/2", "Connection: keep-alive", method="HEAD")

    received = await warm.send_raw(first + second + third + request("/v2/"))

    positions = [received.index(part) for part in (image.manifest, layer, b"404 Not Found", b"\r\n\r\n{}")]
    assert positions == sorted(positions)
    assert received.count(b"HTTP/1.1 200") == 3


@pytest.mark.parametrize("body", ["{}", "x" * 300_000])
async def test_a_get_with_a_body_leaves_the_connection_sane(warm, blob, body):
    """B57: the conformance suite sends such: the body is passed over, the next request is answered."""
    for path in (TAG, "/v2/team/app/manifests/2", "/v2/", blob):
        first = request(path, "Connection: keep-alive", f"Content-Length: {len(body)}") + body.encode()

        received = await warm.send_raw(first + request("/v2/"))

        assert received.count(b"HTTP/1.1 ") == 2
        assert received.endswith(b"\r\n\r\n{}")


async def test_a_push_that_waits_for_100_is_refused_at_once(mirror, upstream):
    """B56: nobody is told to send a body that is not wanted."""
    lines = ("Expect: 100-continue", "Content-Length: 1000000")

    reader, writer = await asyncio.open_connection("127.0.0.1", mirror.port)
    writer.write(request("/v2/team/app/manifests/1", *lines, method="PUT"))
    received = await reader.readuntil(b"\r\n\r\n")
    writer.close()

    assert received.startswith(b"HTTP/1.1 405")
    assert upstream.count() == 0


async def test_an_unknown_expectation_is_passed_over(warm, image):
    """A client that expects the unknown is answered in the API's terms all the same."""
    received = await warm.send_raw(request(TAG, "Expect: 200-ok"))

    assert received.startswith(b"HTTP/1.1 200")
    assert received.endswith(image.manifest)


async def test_a_header_of_20_kilobytes(warm, layer, blob):
    """B57, B49: podman's 1024 ranges in one header are answered, part by part."""
    spans = [(start, start + 4) for start in range(0, 1024 * 9, 9)]
    header = "Range: bytes=" + ",".join(f"{start:08}-{stop:09}" for start, stop in spans)
    assert len(header) > 19_000

    received = await warm.send_raw(request(blob, header))

    assert received.startswith(b"HTTP/1.1 206")
    assert received.count(b"Content-Range: bytes ") == 1024


@pytest.fixture
async def program(upstream, storage):
    async with run_program(storage, {"registry.test": upstream}) as program:
        yield program


async def test_what_cannot_be_parsed_is_refused_as_the_api_has_it(program, upstream):
    """B57: 400 in JSON, and the end of the connection; nothing of the request in answer or log."""
    secret = "Authorization: Basic c2VjcmV0"
    both = "GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    for text in (
        both + "GET /v2/_catalog HTTP/1.1\r\nHost: x\r\n\r\n",
        f"GET /v2/ HTTP/1.1\r\nHost: x\r\n{secret}{'A' * 100_000}\r\n\r\n",
        f"GET /v2/ HTTP/1.1\r\nHost: x\r\n{secret}\x01\r\n\r\n",
        f"GET /v2/{'a' * 70_000} HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        "GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "NONSENSE\r\n\r\n",
        "GET /v2/t\xe9am/app/manifests/1 HTTP/1.1\r\nHost: x\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ):
        received = await program.send_raw(text.encode("latin-1"))
        assert received.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400")), text[:80]
        assert received.count(b"HTTP/1.") == 1, "the connection ends there"
        head, _, body = received.partition(b"\r\n\r\n")
        assert b"Content-Type: application/json" in head
        assert b"Docker-Distribution-Api-Version: registry/2.0" in head
        assert body.startswith(b'{"errors":[{"code":"UNSUPPORTED"')
        assert b"c2VjcmV0" not in received
    large = await program.get("/v2/", {"Range": "bytes=" + "0-0," * 5000 + "1-1"})
    assert large.status == 200, "20 KB are podman's"
    assert "c2VjcmV0" not in program.log
    assert "Traceback" not in program.log
    assert upstream.count() == 0


# --- TLS ---


@pytest.fixture
async def secure(storage, upstream, tmp_path):
    """A mirror that speaks https, and a function that asks it."""
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    config = make_config(storage, {"registry.test": upstream})
    prepare(config)
    [sock] = bind("127.0.0.1:0", 1)
    port = sock.getsockname()[1]

    async def talk(text, context=client):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(text)
        received = await reader.read()
        writer.close()
        return received

    async with open_worker(config) as worker:
        served = open_http_server(worker)
        served.listen(sock, server)
        yield talk
        await served.close()


@pytest.mark.parametrize("state", ["cold", "warm"])
async def test_over_tls_everything_is_the_same(secure, image, blob, layer, state):
    """B48, B49, B76: manifest, whole blob, one range, several ranges, an error; cold and warm."""
    await secure(request(TAG))
    if state == "warm":
        await secure(request(blob))
    assert (await secure(request(TAG))).endswith(b"\r\n\r\n" + image.manifest)
    part = await secure(request(blob, "Range: bytes=100-199"))
    assert part.startswith(b"HTTP/1.1 206")
    assert part.endswith(b"\r\n\r\n" + layer[100:200])
    several = await secure(request(blob, "Range: bytes=5-9,0-1"))
    assert several.count(b"Content-Range: bytes ") == 2
    assert several.index(layer[5:10]) < several.index(b"bytes 0-1/")
    assert (await secure(request(blob))).endswith(b"\r\n\r\n" + layer)
    assert (await secure(request("/v2/team/app/manifests/2"))).startswith(b"HTTP/1.1 404")


async def test_plain_http_on_the_tls_port_is_no_success(secure):
    """B57, B76: whoever forgot the s gets no answer that could be taken for one."""
    try:
        received = await secure(request("/v2/"), None)
    except ConnectionError:
        received = b""

    assert b"200 OK" not in received
    assert (await secure(request("/v2/"))).startswith(b"HTTP/1.1 200")
