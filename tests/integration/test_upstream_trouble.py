"""An upstream that keeps failing, hangs, or limits: what it is spared, and what clients get."""

import asyncio
import math
from contextlib import suppress
from typing import Any, cast

import pytest

from regmirror.config.schema import Upstream
from regmirror.errors import UpstreamCircuitOpen, UpstreamError, UpstreamTimeout
from regmirror.metadata.cache import MetadataCache
from regmirror.mirror.upstream_access import UpstreamAccess
from regmirror.oci.names import Digest, Repository
from regmirror.telemetry.events import CircuitChanged, UpstreamRequestEnded
from regmirror.upstream.health.monitor import ActivityMonitor
from regmirror.upstream.registry import Upstreams
from tests.fake_registry import FakeRegistry, FakeStorage, Hold, RateLimit, Status, StripHeaders, random_bytes
from tests.integration.asking import ALPINE, LATEST, NAME, asking, speaking
from tests.integration.pulling import pull_image
from tests.mirror_fixture import run_program, wait_until

TAG = "/v2/team/app/manifests/1"
NEW = "/v2/team/app/manifests/new"
NOTHING = "sha256:" + "0" * 64
MAX_AGE = 300
PROBE_INTERVAL = 5
STALE = "regmirror; hit; detail=stale"


@pytest.fixture
def image(upstream: Any) -> Any:
    return upstream.add_image("team/app", "1", [random_bytes(20_000)])


async def open_circuit(mirror: Any, path: str = "/v2/team/app/manifests/away") -> None:
    """Three failures, one after the other, of something that is not cached."""
    for _ in range(3):
        assert (await mirror.get(path)).status in (502, 504)
    assert circuit(mirror) == [True]


def circuit(mirror: Any) -> Any:
    """How the circuit changed, in order."""
    return [event.is_open for event in mirror.events.of(CircuitChanged)]


async def closed(mirror: Any) -> None:
    await mirror.events.wait_until(
        lambda: circuit(mirror)[-1:] == [False], description="the circuit is closed"
    )


# --- the circuit ---


async def test_an_upstream_that_keeps_failing_is_left_alone(mirror: Any, upstream: Any, image: Any) -> None:
    """B33, B34: over its whole life, from the first failure to its recovery by itself."""
    await pull_image(mirror, image)
    mirror.clock.advance(MAX_AGE + 1)
    failing = upstream.fault(Status(503), times=None)
    for _ in range(3):
        assert (await mirror.get(TAG)).headers["Cache-Status"] == STALE
    await mirror.events.wait_for(CircuitChanged)
    upstream.clear()

    for method in ("GET", "HEAD", "GET"):
        response = await mirror.request(method, TAG)
        assert (response.status, response.headers["Cache-Status"]) == (200, STALE)
        assert "keeps failing (status-503)" in response.headers["Warning"]
    for path in (NEW, f"/v2/team/app/manifests/{NOTHING}", f"/v2/team/app/blobs/{NOTHING}"):
        refused = await mirror.get(path)
        assert (refused.status, refused.code) == (503, "UNAVAILABLE")
        assert 1 <= int(refused.headers["Retry-After"]) <= PROBE_INTERVAL
        assert (await mirror.head(path)).status == 503
    assert upstream.count() == 0, "whatever is asked"
    metrics = (await mirror.get("/metrics")).body.decode()
    assert 'regmirror_upstream_up{upstream="registry.test"} 0.0' in metrics

    for number in (1, 2):
        mirror.clock.advance(PROBE_INTERVAL)
        await upstream.wait_for_requests(count=number)
    assert [request.method for request in upstream.requests] == ["HEAD", "HEAD"], "probes are no pulls"
    assert (await mirror.get(NEW)).status == 503
    failing.remove()
    mirror.clock.advance(PROBE_INTERVAL)
    await closed(mirror)

    assert circuit(mirror) == [True, False]
    assert (await mirror.get(TAG)).headers["Cache-Status"] == "regmirror; fwd=stale; fwd-status=200"
    assert (await mirror.get(NEW)).status == 404


async def test_it_recovers_from_being_down_with_nobody_asking(mirror: Any, upstream: Any, image: Any) -> None:
    """B33: no connection, too."""
    await upstream.stop()
    await open_circuit(mirror)
    await upstream.start()
    upstream.clear()
    mirror.clock.advance(PROBE_INTERVAL)
    await closed(mirror)
    assert (await mirror.get(TAG)).body == image.manifest


async def test_what_fails_at_one_moment_has_failed_once(mirror: Any, upstream: Any, image: Any) -> None:
    """B33: a restart of the upstream breaks many requests and is no outage."""
    hold = Hold()
    upstream.fault(hold, Status(500), kind="manifest", times=20)
    asks = [asyncio.create_task(mirror.get(f"/v2/team/app/manifests/{n}x")) for n in range(20)]
    await hold.wait_for_arrivals(20)
    hold.release()
    assert {response.status for response in await asyncio.gather(*asks)} == {502}
    assert circuit(mirror) == []
    assert (await mirror.get(TAG)).body == image.manifest


@pytest.mark.parametrize("status", [401, 403, 404, 405, 429, 501])
async def test_what_an_upstream_refuses_is_no_failure(
    mirror: Any, upstream: Any, image: Any, status: int
) -> None:
    """B33: it has answered."""
    upstream.fault(Status(status, {"Retry-After": "0"}), times=None)
    for number in range(5):
        await mirror.head(f"/v2/team/app/manifests/{number}")
    assert circuit(mirror) == []


async def test_wrong_bytes_are_no_failure(mirror: Any, upstream: Any, image: Any) -> None:
    """B33: what is wrong is one image, and it is said of that."""
    wrong = upstream.add_manifest("team/app", b"{}", tag="wrong")
    for _ in range(4):
        assert (await mirror.get("/v2/team/app/manifests/wrong")).status == 502
        assert (await mirror.get(f"/v2/team/app/manifests/{wrong}")).status == 502
    assert circuit(mirror) == []


async def test_a_storage_that_fails_is_not_the_upstream(mirror: Any, upstream: Any, image: Any) -> None:
    """B33: manifests go on."""
    async with FakeStorage(upstream) as storage:
        storage.fault(Status(503), times=None)
        for _ in range(4):
            assert (await mirror.get(f"/v2/team/app/blobs/{image.config_digest}")).status == 502
    upstream.blob_location = lambda request: f"http://127.0.0.1:9/{request.reference}"  # nobody is there
    for _ in range(4):
        assert (await mirror.get(f"/v2/team/app/blobs/{image.config_digest}")).status == 502
    assert circuit(mirror) == []
    assert (await mirror.get(TAG)).body == image.manifest


async def test_a_token_server_that_fails_is_the_upstream(start_mirror: Any) -> None:
    """B33: its 401 is an answer, and yet nothing can be had."""
    async with FakeRegistry(auth="bearer") as upstream:
        image = upstream.add_image("team/app", "1")
        mirror = await start_mirror({"registry.test": upstream})
        failing = upstream.fault(Status(500), kind="token", times=None)
        await open_circuit(mirror, TAG)
        upstream.clear()
        assert (await mirror.get(TAG)).status == 503
        assert upstream.count() == 0
        mirror.clock.advance(PROBE_INTERVAL)
        await upstream.wait_for_requests("token")
        failing.remove()
        mirror.clock.advance(PROBE_INTERVAL)
        await closed(mirror)
        assert (await mirror.get(TAG)).body == image.manifest


async def test_one_broken_image_does_not_keep_the_others_away(mirror: Any, upstream: Any, image: Any) -> None:
    """B33: a probe asks for what was wanted last, so that the circuit closes."""
    upstream.fault(Status(500), reference="broken", times=None)
    await open_circuit(mirror, "/v2/team/app/manifests/broken")
    assert (await mirror.get(TAG)).status == 503
    upstream.clear()

    mirror.clock.advance(PROBE_INTERVAL)
    await closed(mirror)

    assert [(request.method, request.reference) for request in upstream.requests] == [("HEAD", "1")]
    assert (await mirror.get(TAG)).body == image.manifest


async def test_a_probe_obeys_a_limit(mirror: Any, upstream: Any, image: Any) -> None:
    """B30: no manifest is asked for by a probe either."""
    upstream.fault(Status(429, {"Retry-After": "3600"}), kind="manifest", times=1)
    assert (await mirror.get(TAG)).status == 429
    upstream.fault(Status(500), kind="blob", times=None)
    await open_circuit(mirror, f"/v2/team/app/blobs/{image.config_digest}")
    assert (await mirror.get(TAG)).status == 503, "what is wanted last"
    upstream.clear()
    mirror.clock.advance(PROBE_INTERVAL)
    await closed(mirror)
    assert [request.path for request in upstream.requests] == ["/v2/"]
    assert (await mirror.get(TAG)).status == 429


async def test_who_waits_for_a_connection_is_refused_too(upstream: Any) -> None:
    """B34: a queue before a dead upstream is left at once."""
    async with asking(upstream.url, max_connections=1) as client:
        with suppress(UpstreamError):
            await client.list_tags(ALPINE)
        upstream.clear()
        gate = upstream.hold()
        first = asyncio.ensure_future(client.get_manifest(ALPINE, LATEST))
        await gate.wait_for_arrivals()
        waiting = [asyncio.ensure_future(client.list_tags(ALPINE)) for _ in range(3)]
        await asyncio.sleep(0)
        for _ in range(3):
            client.health.note_failure(0.0, "slow")
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(error) for error in found] == [UpstreamCircuitOpen] * 3
        assert upstream.count() == 1
        first.cancel()


# --- a hung upstream ---


async def test_a_hung_upstream_opens_the_circuit_after_three_slow_answers(
    start_mirror: Any, upstream: Any
) -> None:
    """B33, B35: long before any of its answers has timed out; what hung is answered in the end."""
    mirror = await start_mirror(stale_deadline=0.05)
    images = [upstream.add_image("team/app", str(n), [bytes([n])]) for n in range(4)]
    for number, image in enumerate(images):
        await pull_image(mirror, image, tag=str(number))
    mirror.clock.advance(MAX_AGE + 1)
    upstream.clear()
    gate = upstream.hold()

    warnings = [
        (await mirror.get(f"/v2/team/app/manifests/{n}")).headers["Warning"] for n in (0, 1, 2, 3, 0, 3)
    ]

    assert ["slow to respond" in text for text in warnings] == [True] * 3 + [False] * 3
    assert circuit(mirror) == [True]
    assert upstream.count() == 3
    assert (await mirror.get(NEW)).status == 503
    gate.release()
    await closed(mirror)
    assert upstream.count("manifest", "GET") == 0


@pytest.mark.parametrize(
    "path",
    ["manifests/new", f"manifests/{NOTHING}", f"blobs/{NOTHING}", "tags/list"],
)
async def test_clients_fall_back_from_a_hung_upstream(
    start_mirror: Any, upstream: Any, image: Any, path: str
) -> None:
    """B34, B86: 504 in a moment, HEAD and GET, and the one question goes on."""
    mirror = await start_mirror(cold_deadline=0.05)
    gate = upstream.hold()
    responses = [await mirror.get(f"/v2/team/app/{path}") for _ in range(2)]
    assert [response.status for response in responses] == [504, 504]
    assert responses[0].json()["errors"][0]["detail"] == {"upstream": "registry.test", "reason": "slow"}
    assert upstream.count() == 1
    gate.release()


async def test_the_answer_that_nobody_waited_for_is_there_for_the_next(
    start_mirror: Any, upstream: Any, image: Any
) -> None:
    """B34: manifest and blob."""
    mirror = await start_mirror(cold_deadline=0.05)
    blob = f"/v2/team/app/blobs/{image.layer_digests[0]}"
    gate = upstream.hold()
    assert (await mirror.get(TAG)).status == 504
    assert (await mirror.get(blob)).status == 504
    gate.release()
    await mirror.events.wait_until(lambda: len(mirror.events.of(UpstreamRequestEnded)) == 2)
    await wait_until(lambda: mirror.stored() == {image.layer_digests[0]}, "the blob is stored")

    assert (await mirror.get(TAG)).body == image.manifest
    assert (await mirror.get(blob)).body == image.layers[0]
    assert (upstream.count("manifest"), upstream.count("blob", "GET")) == (1, 1)


async def test_clients_fall_back_from_a_request_that_hangs_while_others_are_answered(
    start_mirror: Any, upstream: Any, image: Any
) -> None:
    """B34: other requests say nothing of this one, and the upstream is not blamed."""
    mirror = await start_mirror(cold_deadline=0.2)
    await mirror.get("/v2/team/app/manifests/first")
    gate = upstream.hold(reference="1")
    slow = asyncio.create_task(mirror.get(TAG))
    await gate.wait_for_arrivals()
    for number in range(6):
        assert (await mirror.get(f"/v2/team/app/manifests/other{number}")).status == 404
        await asyncio.wait([slow], timeout=0.05)
    assert (await slow).status == 504
    assert circuit(mirror) == []
    gate.release()
    await mirror.events.wait_until(lambda: upstream.count("manifest", "GET") == 8)
    assert (await mirror.get(TAG)).body == image.manifest


@pytest.mark.parametrize("is_blob", [True, False])
async def test_each_response_to_a_request_is_a_sign_of_its_own_life(is_blob: bool) -> None:
    """B34, B23: a redirect that was answered, while the host behind it hangs."""
    hung = asyncio.Event()

    async def talk(reader: Any, writer: Any) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 307 \r\nLocation: /moved\r\nContent-Length: 0\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        hung.set()
        await reader.read(-1)

    async with speaking(talk) as host, asking(f"http://{host}") as client:
        watch = client.health.activity.watch
        own, other = watch(ALPINE.name, NOTHING if is_blob else LATEST), watch(ALPINE.name, "other")
        request = (
            client.blob_size(ALPINE, Digest(NOTHING)) if is_blob else client.get_manifest(ALPINE, LATEST)
        )
        task = asyncio.create_task(request)
        await hung.wait()
        assert own.last_at > other.last_at == -math.inf
        task.cancel()


async def test_each_wait_of_a_client_ends_with_the_request_that_it_waits_for(
    mirror: Any, upstream: Any, image: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B34: signs of life are noted under the names that waits go by."""
    watched: set[Any] = set()
    noted: set[Any] = set()
    watch = ActivityMonitor.watch

    def watch_and_record(self: ActivityMonitor, *name: str) -> Any:
        watched.add(name)
        return watch(self, *name)

    monkeypatch.setattr(ActivityMonitor, "watch", watch_and_record)
    monkeypatch.setattr(ActivityMonitor, "note", lambda self, *name: noted.add(name))
    blob = image.layer_digests[0]
    paths = ["manifests/1", f"blobs/{blob}", "tags/list", f"referrers/{image.digest}"]
    assert [(await mirror.get(f"/v2/team/app/{path}")).status for path in paths] == [200] * 4
    assert (await mirror.head(f"/v2/team/app/blobs/{image.config_digest}")).status == 200
    names = {"1", blob, "list", str(image.digest), image.config_digest}
    assert {("team/app", name) for name in names} == watched
    assert watched <= noted


@pytest.fixture
async def upstreams(upstream: Any) -> Any:
    """The clients of one upstream, as the mirror asks them."""
    made = Upstreams({NAME: Upstream(url=upstream.url)}, emit=lambda event: None)
    yield made
    await made.close()


@pytest.mark.parametrize("has_stale", [True, False])
async def test_who_joins_what_hangs_does_not_wait_again(upstreams: Any, has_stale: bool) -> None:
    """B35: patience of an hour that has passed already."""
    asks = UpstreamAccess(
        cast("MetadataCache", None), upstreams, offline=False, stale_deadline=3600, cold_deadline=3600
    )
    forever = asyncio.get_running_loop().create_future()
    async with asyncio.timeout(10):
        with pytest.raises(UpstreamTimeout) as caught:
            await asks.with_deadline(
                Repository(NAME, "a/b"), lambda: asyncio.shield(forever), age=3601, has_stale=has_stale
            )
    assert caught.value.reason == "slow"
    assert not forever.done()


@pytest.mark.parametrize("subject", ["1", "other"])
async def test_a_request_that_hangs_has_a_deadline(upstreams: Any, subject: str) -> None:
    """B34: signs of life of other requests do not move it, and its own only up to a limit."""
    asks = UpstreamAccess(
        cast("MetadataCache", None), upstreams, offline=False, cold_deadline=0.05, longest=0.3
    )
    health, forever = upstreams[NAME].health, asyncio.get_running_loop().create_future()
    calls = []

    def ask() -> Any:
        calls.append(subject)
        health.note_activity("a/b", subject, is_upstream=True)
        health.activity.note("a/b", subject)
        return asyncio.shield(forever)

    async with asyncio.timeout(10):
        with pytest.raises(UpstreamTimeout):
            await asks.with_deadline(Repository(NAME, "a/b"), ask, subject="1")
    assert (len(calls) > 1) == (subject == "1")
    assert not health.is_open()


async def test_work_in_the_air_is_not_waited_for_while_the_circuit_is_open(upstreams: Any) -> None:
    """B33: a flight that began before it opened is of no use to who comes now."""
    asks = UpstreamAccess(
        cast("MetadataCache", None), upstreams, offline=False, stale_deadline=3600, cold_deadline=3600
    )
    for _ in range(3):
        upstreams[NAME].health.note_failure(0.0, "slow")
    forever = asyncio.get_running_loop().create_future()
    async with asyncio.timeout(10):
        with pytest.raises(UpstreamCircuitOpen):
            await asks.with_deadline(Repository(NAME, "a/b"), lambda: asyncio.shield(forever))


# --- limits ---


async def test_a_limit_is_obeyed(mirror: Any, upstream: Any, image: Any) -> None:
    """B30: six immediate repeats, as containerd makes them, do not reach the upstream."""
    upstream.rate_limit = RateLimit(limit=100, remaining=0, retry_after=60)
    upstream.add_image("team/app", "2", [b"second"])

    responses = [await mirror.get(TAG) for _ in range(7)]
    responses += [await mirror.get(f"/v2/team/app/{path}") for path in ("manifests/2", "tags/list")]
    responses.append(await mirror.get(f"/v2/team/app/manifests/{image.digest}"))

    assert {(response.status, response.code) for response in responses} == {(429, "TOOMANYREQUESTS")}
    assert {response.headers["Retry-After"] for response in responses} <= {"59", "60"}
    assert upstream.count() == 1
    blob = await mirror.get(f"/v2/team/app/blobs/{image.layer_digests[0]}")
    assert blob.body == image.layers[0], "blobs are not what is counted"
    upstream.rate_limit.remaining = 10
    mirror.clock.advance(59)
    assert (await mirror.get(TAG)).status == 429
    mirror.clock.advance(2)
    assert (await mirror.get(TAG)).body == image.manifest
    assert circuit(mirror) == []


async def test_a_limit_on_blobs_is_one_on_everything(mirror: Any, upstream: Any, image: Any) -> None:
    """B30."""
    upstream.fault(Status(429, {"Retry-After": "30"}), kind="blob", times=1)
    path = f"/v2/team/app/blobs/{image.config_digest}"
    responses = [
        await mirror.get(path),
        await mirror.get(path),
        await mirror.head(path),
        await mirror.get(TAG),
    ]
    assert [response.status for response in responses] == [429] * 4
    assert upstream.count() == 1
    mirror.clock.advance(31)
    assert (await mirror.get(path)).body == image.config


async def test_a_limit_of_a_storage_host_is_one_on_blobs_alone(
    mirror: Any, upstream: Any, image: Any
) -> None:
    """B30: the registry itself has limited nothing, so its manifests are requested as before."""
    async with FakeStorage(upstream) as storage:
        storage.fault(Status(429, {"Retry-After": "30"}), times=1)
        path = f"/v2/team/app/blobs/{image.layer_digests[0]}"
        responses = [await mirror.get(path), await mirror.get(path), await mirror.get(TAG)]
        assert [response.status for response in responses] == [429, 429, 200]
        assert (upstream.count("blob"), storage.count(), upstream.count("manifest")) == (1, 1, 1)
        mirror.clock.advance(31)
        assert (await mirror.get(path)).body == image.layers[0]


async def test_a_limit_of_the_token_server_is_obeyed(start_mirror: Any) -> None:
    """B30: by everything that would need another token."""
    async with FakeRegistry(auth="bearer") as upstream:
        image = upstream.add_image("team/app", "1")
        mirror = await start_mirror({"registry.test": upstream})
        upstream.fault(Status(429, {"Retry-After": "40"}), kind="token", times=1)
        paths = (TAG, TAG, NEW, f"/v2/team/app/blobs/{image.config_digest}", "/v2/team/app/tags/list")
        for path in paths:
            response = await mirror.get(path)
            assert (response.status, response.headers["Retry-After"] in ("39", "40")) == (429, True), path
        assert upstream.count("token") == 1
        assert upstream.count("manifest") == 1
        mirror.clock.advance(41)
        assert (await mirror.get(TAG)).body == image.manifest


async def test_a_cached_tag_is_served_while_the_limit_lasts(mirror: Any, upstream: Any, image: Any) -> None:
    """B30, B33: with a warning, without asking."""
    await pull_image(mirror, image)
    mirror.clock.advance(MAX_AGE + 1)
    upstream.fault(Status(429, {"Retry-After": "60"}), kind="manifest", times=1)
    upstream.clear()
    for _ in range(7):
        response = await mirror.get(TAG)
        assert (response.body, response.headers["Cache-Status"]) == (image.manifest, STALE)
        assert "limits the rate" in response.headers["Warning"]
    assert upstream.count() == 1


async def test_all_workers_obey_a_limit(upstream: Any, storage: Any) -> None:
    """B30: two processes on one port, and every connection another."""
    upstream.rate_limit = RateLimit(limit=100, remaining=0, retry_after=60)
    upstream.add_image("team/app", "1")
    async with run_program(storage, {"registry.test": upstream}, workers=2) as program:
        request = f"GET {TAG} HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n".encode()
        responses = [await program.send_raw(request) for _ in range(30)]
    assert {response.split()[1] for response in responses} == {b"429"}
    assert upstream.count() == 1


async def test_a_limit_is_obeyed_after_a_restart(start_mirror: Any, upstream: Any, image: Any) -> None:
    """B30: it is the upstream that counts the time, not this process."""
    first = await start_mirror()
    upstream.rate_limit = RateLimit(limit=100, remaining=0, retry_after=60)
    assert (await first.get(TAG)).status == 429
    second = await start_mirror(clock=first.clock)
    assert (await second.get(TAG)).status == 429
    assert upstream.count() == 1
    upstream.rate_limit = None
    first.clock.advance(61)
    assert (await second.get(TAG)).body == image.manifest


async def test_other_credentials_are_other_limits(start_mirror: Any, upstream: Any, image: Any) -> None:
    """B30: the limit is the account's; a new password is the same account."""

    def account(name: Any, password: Any) -> Any:
        return {"upstreams": {"registry.test": {"username": name, "password": password}}}

    mirror = await start_mirror(**account("ann", "a"))
    clock = mirror.clock
    upstream.rate_limit = RateLimit(limit=100, remaining=0, retry_after=60)
    assert (await mirror.get(TAG)).status == 429
    upstream.rate_limit = None
    mirror = await start_mirror(**account("ann", "b"), clock=clock)
    assert (await mirror.get(TAG)).status == 429
    mirror = await start_mirror(**account("bob", "b"), clock=clock)
    assert (await mirror.get(TAG)).body == image.manifest


async def test_the_reserve_is_left_for_what_is_not_cached(
    start_mirror: Any, upstream: Any, image: Any
) -> None:
    """B31: cached tags are not asked for, and say why; one look a minute."""
    upstream.rate_limit = RateLimit(limit=100, remaining=10)
    mirror = await start_mirror(
        upstreams={"registry.test": {"rate_limit_reserve": 10}}, freshness={"tag_max_age": "10s"}
    )
    await mirror.get(TAG)
    mirror.clock.advance(11)
    upstream.clear()

    for method in ("GET", "HEAD"):
        response = await mirror.request(method, TAG)
        assert response.headers["Cache-Status"] == STALE
        assert "rate limit almost exhausted (9 of 100 left)" in response.headers["Warning"]
    assert upstream.count() == 0
    upstream.add_image("team/app", "new")
    assert (await mirror.get(NEW)).status == 200, "what is not cached is asked for"
    mirror.clock.advance(61)
    response = await mirror.get(TAG)
    assert response.headers["Cache-Status"] == "regmirror; fwd=stale; fwd-status=200"
    mirror.clock.advance(11)
    assert (await mirror.get(TAG)).headers["Cache-Status"] == STALE
    assert upstream.count() == 2
    metrics = (await mirror.get("/metrics")).body.decode()
    assert 'regmirror_upstream_ratelimit_remaining{upstream="registry.test"} 8.0' in metrics


# --- several processes ---


async def test_processes_share_what_they_know(start_mirror: Any, upstream: Any, image: Any) -> None:
    """B33: what one learnt the other need not, and together they make one probe an interval."""
    first = await start_mirror()
    second = await start_mirror(clock=first.clock)
    failing = upstream.fault(Status(500), times=None)
    await open_circuit(first)
    upstream.clear()
    for _ in range(3):
        assert (await second.get(NEW)).status == 503
    assert upstream.count() == 0
    assert circuit(second) == [True]

    for number in (1, 2, 3):
        first.clock.advance(PROBE_INTERVAL)
        await upstream.wait_for_requests(count=number)
    failing.remove()
    first.clock.advance(PROBE_INTERVAL)
    await closed(first)
    await closed(second)

    assert upstream.count() == 4
    assert circuit(first) == circuit(second) == [True, False]


async def test_an_open_circuit_outlives_a_restart(start_mirror: Any, upstream: Any, image: Any) -> None:
    """B33: the new process makes the probe, and knows nothing better to ask for than the API."""
    first = await start_mirror()
    failing = upstream.fault(Status(500), times=None)
    await open_circuit(first)
    await first.reload(freshness={"offline": True})
    second = await start_mirror(clock=first.clock)
    assert (await second.get("/v2/team/app/tags/list")).status == 503
    failing.remove()
    first.clock.advance(PROBE_INTERVAL)
    await closed(second)
    assert (await second.get(TAG)).body == image.manifest


async def test_offline_nothing_is_probed(mirror: Any, upstream: Any, image: Any) -> None:
    """B37: not even what was being probed before."""
    upstream.fault(Status(500), times=None)
    await open_circuit(mirror)
    await mirror.reload(freshness={"offline": True})
    upstream.clear()
    mirror.clock.advance(PROBE_INTERVAL)
    await wait_until(lambda: "Probing._run" not in running(), "nobody looks after the circuit any more")

    assert (await mirror.get(TAG)).status == 404
    assert upstream.count() == 0
    upstream.clear_faults()
    await mirror.reload()
    await closed(mirror)


def running() -> Any:
    """What tasks there are."""
    return {getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()}


# --- tags that are gone, and tags that have moved ---


async def test_a_tag_that_the_upstream_deleted_can_be_kept(
    start_mirror: Any, upstream: Any, image: Any
) -> None:
    """B36: on_missing = "keep" serves it as stale for as long as it is gone, however old it is."""
    mirror = await start_mirror(freshness={"on_missing": "keep"})
    await mirror.get(TAG)
    upstream.remove_tag("team/app", "1")
    for age in (MAX_AGE + 1, 365 * 86400):
        mirror.clock.advance(age)
        for method, body in (("GET", image.manifest), ("HEAD", b""), ("GET", image.manifest)):
            response = await mirror.request(method, TAG)
            assert (response.status, response.body) == (200, body)
            assert response.headers["Cache-Status"] == STALE
            assert "has no team/app:1" in response.headers["Warning"]
    assert upstream.count("manifest", "GET") == 3, "and it is remembered for a moment that it is gone"
    moved = upstream.add_image("team/app", "1", [b"again"])
    mirror.clock.advance(11)
    assert (await mirror.get(TAG)).body == moved.manifest


async def test_a_tag_that_is_refused_is_not_kept(start_mirror: Any, upstream: Any, image: Any) -> None:
    """B36: losing access is no deletion."""
    mirror = await start_mirror(freshness={"on_missing": "keep"})
    await mirror.get(TAG)
    mirror.clock.advance(MAX_AGE + 1)
    upstream.fault(Status(403), times=None)
    assert [(await mirror.get(TAG)).status for _ in range(2)] == [404, 404]


@pytest.mark.parametrize("age", [0, MAX_AGE + 1])
@pytest.mark.parametrize("restarts", [False, True])
async def test_a_tag_that_moved_is_served_as_it_was_while_the_new_one_cannot_be_had(
    start_mirror: Any, upstream: Any, image: Any, age: int, restarts: bool
) -> None:
    """B33: a HEAD that saw it move takes nothing away, within the max age and after it."""
    mirror = await start_mirror()
    await pull_image(mirror, image)
    moved = upstream.add_image("team/app", "1", [b"moved"])
    mirror.clock.advance(MAX_AGE + 1)
    assert (await mirror.head(TAG)).headers["Docker-Content-Digest"] == moved.digest
    failing = upstream.fault(Status(500), times=None)
    mirror.clock.advance(age)
    if restarts:
        mirror = await start_mirror(clock=mirror.clock)

    for _ in range(5):  # while it fails, and when its circuit is open
        response = await mirror.get(TAG)
        assert (response.body, response.headers["Cache-Status"]) == (image.manifest, STALE)
    head = await mirror.head(TAG)
    assert head.headers["Docker-Content-Digest"] == image.digest, "HEAD promises what GET keeps"
    failing.remove()
    mirror.clock.advance(PROBE_INTERVAL)
    await closed(mirror)
    assert (await mirror.get(TAG)).body == moved.manifest


async def test_offline_a_tag_that_moved_is_what_it_was(start_mirror: Any, upstream: Any, image: Any) -> None:
    """B37: the manifest that is there."""
    mirror = await start_mirror()
    await pull_image(mirror, image)
    upstream.add_image("team/app", "1", [b"moved"])
    mirror.clock.advance(MAX_AGE + 1)
    await mirror.head(TAG)
    await mirror.reload(freshness={"offline": True})
    assert (await mirror.get(TAG)).body == image.manifest
    assert (await mirror.head(TAG)).headers["Docker-Content-Digest"] == image.digest


async def test_offline_a_tag_without_its_manifest_is_not_forgotten(
    start_mirror: Any, upstream: Any, image: Any
) -> None:
    """B37: that nobody may be asked says nothing about the tag."""
    mirror = await start_mirror()
    await mirror.head(TAG)
    await mirror.reload(freshness={"offline": True})
    assert (await mirror.get(TAG)).status == 404
    upstream.clear()
    await mirror.reload()
    assert (await mirror.head(TAG)).headers["Cache-Status"] == "regmirror; hit"
    assert upstream.count() == 0


# --- lists ---


async def test_lists_are_known_while_the_circuit_is_open(mirror: Any, upstream: Any, image: Any) -> None:
    """B33: tags and referrers, without asking."""
    upstream.add_referrer("team/app", image.digest)
    paths = ("/v2/team/app/tags/list", f"/v2/team/app/referrers/{image.digest}")
    before = [(await mirror.get(path)).json() for path in paths]
    upstream.fault(Status(500), times=None)
    await open_circuit(mirror)
    mirror.clock.advance(1)
    upstream.clear()
    mirror.clock.wall_ahead -= 1  # no probe is due
    mirror.clock.monotonic_ahead += MAX_AGE + 1

    for path, known in zip(paths, before, strict=True):
        response = await mirror.get(path)
        assert (response.status, response.json()) == (200, known)
    assert upstream.count() == 0
    assert (await mirror.get("/v2/team/unknown/tags/list")).status == 503


async def test_a_registry_without_head_is_probed_as_well(mirror: Any, upstream: Any, image: Any) -> None:
    """B33: 405 is an answer."""
    upstream.fault(Status(405), method="HEAD", times=None)
    upstream.fault(StripHeaders(["Docker-Content-Digest"]), times=None)
    failing = upstream.fault(Status(500), method="GET", times=None)
    await open_circuit(mirror)
    failing.remove()
    mirror.clock.advance(PROBE_INTERVAL)
    await closed(mirror)
    assert (await mirror.get(TAG)).body == image.manifest
