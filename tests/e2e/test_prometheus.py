"""Monitoring: the metrics under promtool, the shipped rules, and a real Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.e2e.parts.prometheus import Prometheus, promtool
from tests.fake_registry import Corrupt, FakeRegistry, random_bytes
from tests.mirror_fixture import NAME, Program, run_program

TAG = "/v2/team/app/manifests/1"
ALWAYS_ASK = {"tag_max_age": "0"}
NOTICES = 25.0  # seconds until Prometheus must have scraped the metrics


@pytest.mark.parametrize(
    "words",
    [
        ("check", "rules", "alerts.yml"),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
)
def test_promtool_passes_the_shipped_rules(tmp_path: Path, words: tuple[str, ...]) -> None:
    """B81: the rules are right, the example loads them, and each alert fires when it should and only then."""
    status, said = promtool(*words, home=tmp_path)
    assert status == 0, said
    assert "SUCCESS" in said


async def pull_much(program: Program, upstream: FakeRegistry) -> None:
    """Hits, misses, errors and wrong bytes, so that every kind of figure has a value."""
    image = upstream.add_image("team/app", "1", [random_bytes(100_000)])
    wrong = upstream.add_blob("team/app", b"wrong")
    upstream.fault(Corrupt(), kind="blob", reference=wrong, times=None)
    base = "/v2/team/app"
    paths = [TAG, f"{base}/manifests/absent", f"{base}/tags/list", f"{base}/referrers/{image.digest}"]
    paths += [f"{base}/blobs/{digest}" for digest in image.blob_digests]
    for path in [*paths, *paths]:
        await program.get(path)
    await program.send_raw(f"GET {base}/blobs/{wrong} HTTP/1.0\r\n\r\n".encode())


@pytest.mark.parametrize("workers", [1, 2])
async def test_promtool_passes_the_metrics(
    upstream: FakeRegistry, storage: Path, tmp_path: Path, workers: int
) -> None:
    """B81: of a mirror that has just started, and of one that has done much."""
    async with run_program(storage, {NAME: upstream}, workers=workers) as program:
        for is_busy in (False, True):
            if is_busy:
                await pull_much(program, upstream)
            text = (await program.get("/metrics", {"Connection": "close"})).body.decode()
            assert text.count("# TYPE regmirror_") > 20
            assert await asyncio.to_thread(promtool, "check", "metrics", text=text, home=tmp_path) == (0, "")


@asynccontextmanager
async def watch(program: Program, directory: Path) -> AsyncIterator[Prometheus]:
    """A Prometheus that has seen the program."""
    prometheus = Prometheus(directory / "prometheus", program.url.removeprefix("http://"))
    try:
        await asyncio.to_thread(prometheus.wait_ready)
        yield prometheus
    finally:
        await asyncio.to_thread(prometheus.stop)


async def until_seen(
    what: str, condition: Callable[[], bool], meanwhile: Callable[[], Awaitable[object]] | None = None
) -> None:
    """Do something again and again until Prometheus shows it."""
    try:
        async with asyncio.timeout(NOTICES):
            while not await asyncio.to_thread(condition):
                if meanwhile:
                    await meanwhile()
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"not within {NOTICES} s: {what}") from None


@pytest.mark.parametrize("workers", [1, 2])
async def test_an_outage_is_an_alert_until_it_is_over(
    upstream: FakeRegistry, storage: Path, tmp_path: Path, workers: int
) -> None:
    """B81: the upstream stops and responses become stale; both alerts fire, and end when it is back."""
    image = upstream.add_image("team/app", "1", [random_bytes(1_000)])

    async def pull() -> None:
        response = await program.get(TAG, {"Connection": "close"})
        assert (response.status, response.body) == (200, image.manifest)

    async with (
        run_program(storage, {NAME: upstream}, workers=workers, freshness=ALWAYS_ASK) as program,
        watch(program, tmp_path) as prometheus,
    ):
        for digest in image.blob_digests:
            await program.get(f"/v2/team/app/blobs/{digest}")
        ratio = f'regmirror:hit_ratio:rate5m{{upstream="{NAME}"}}'
        await until_seen("a ratio of hits", lambda: prometheus.query(ratio) != [], pull)
        assert prometheus.firing() == {}
        await upstream.stop()
        expected = {"RegmirrorUpstreamDown", "RegmirrorServingStale"}
        await until_seen("the outage", lambda: prometheus.firing().keys() == expected, pull)
        down = prometheus.firing()["RegmirrorUpstreamDown"]
        assert [alert["labels"]["upstream"] for alert in down] == [NAME]
        assert down[0]["annotations"]["summary"].endswith(f"cannot pull from {NAME}")
        await upstream.start()
        await until_seen("its end", lambda: prometheus.firing() == {}, pull)


async def test_a_mirror_that_has_ended_is_an_alert(
    upstream: FakeRegistry, storage: Path, tmp_path: Path
) -> None:
    """B81: only Prometheus can notice this."""
    async with run_program(storage, {NAME: upstream}) as program, watch(program, tmp_path) as prometheus:
        is_up = [1.0]
        await until_seen("the mirror", lambda: [value for _, value in prometheus.query("up")] == is_up)
        assert prometheus.firing() == {}
        program.kill()
        await until_seen("its end", lambda: prometheus.firing().keys() == {"RegmirrorDown"})
        assert prometheus.firing()["RegmirrorDown"][0]["labels"]["severity"] == "critical"
