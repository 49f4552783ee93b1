"""B78: the metrics count every request once, even if clients leave and workers are killed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import socket
import struct
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from regmirror.telemetry.events import KINDS, RESULTS
from tests.fake_registry import Corrupt, FakeRegistry, Image, RateLimit, Status, Truncate, random_bytes
from tests.integration.test_metrics import COUNTER, read_metrics, total
from tests.mirror_fixture import NAME, InProcessMirror, Program, run_program, wait_until

BLOB = random_bytes(300_000)
LARGE = random_bytes(
    16 << 20, seed=3
)  # larger than the socket buffers, so that the server notices a client that leaves
APP = "/v2/team/app"
ALERTS = Path(__file__).parents[2] / "deploy" / "prometheus" / "alerts.yml"
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST
REASONS = ("unreferenced", "evicted", "purged", "corrupt")

#: Each published metric, with the label values that exist from the start.
FROM_THE_START = {
    "requests_total": [*product(KINDS, RESULTS, [NAME, "unknown"])],
    "request_seconds_count": [*product(KINDS)],
    "first_byte_seconds_count": [*product(KINDS, RESULTS)],
    "sent_bytes_total": [*product(KINDS, [NAME, "unknown"])],
    "fetched_bytes_total": [*product(KINDS, [NAME])],
    "upstream_requests_total": [*product(KINDS, ["200", "404", "429", "error"], [NAME])],
    "upstream_seconds_count": [*product(KINDS, [NAME])],
    "upstream_ratelimit_remaining": [(NAME,)],
    "upstream_ratelimit_limit": [(NAME,)],
    "token_requests_total": [*product(["200", "401", "error"], [NAME])],
    "downloads_in_flight": [()],
    "download_followers": [()],
    "store_bytes": [()],
    "store_max_bytes": [()],
    "store_blobs": [()],
    "store_manifests": [()],
    "removed_total": [*product(REASONS)],
    "removed_bytes_total": [*product(REASONS)],
    "verification_failures_total": [*product(KINDS, [NAME, "unknown"])],
    "uncached_total": [*product(["database", "disk", "quota", "stalled"])],
}


@pytest.fixture
def image(upstream: FakeRegistry) -> Any:
    return upstream.add_image("team/app", "1", [BLOB, b"second"])


def raw(path: str, method: str = "GET", **headers: Any) -> Any:
    lines = [f"{method} {path} HTTP/1.1", "Host: m", "Connection: close"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode()


async def metrics_after(program: Program, count: int) -> Any:
    """The metrics after ``count`` requests have ended."""
    await wait_until(lambda: len(program.log_records("request")) >= count, f"{count} requests have ended")
    return await read_metrics(program)


# --- children ---


@pytest.mark.parametrize("workers", [1, 2])
async def test_every_child_exists_from_the_start(upstream: FakeRegistry, storage: Path, workers: int) -> None:
    """B78, B81: at 0, so that the first event is an increase."""
    expected = {
        (f"regmirror_{name}", *labels) for name, children in FROM_THE_START.items() for labels in children
    }
    async with run_program(storage, {NAME: upstream}, workers=workers) as program:
        metrics = await read_metrics(program)
    assert expected - metrics.keys() == set()
    assert {key: metrics[key] for key in expected if metrics[key]} == {}
    assert metrics["regmirror_upstream_up", NAME] == 1
    assert total(metrics, "regmirror_build_info") == 1


async def test_the_alert_rules_use_existing_metrics(mirror: InProcessMirror) -> None:
    """B81: a rule about a metric or label value that does not exist would never fire."""
    metrics = await read_metrics(mirror)
    rules = ALERTS.read_text(encoding="utf-8")
    names = set(re.findall(r"\bregmirror_\w+", rules))
    assert len(names) >= 10
    assert names - {key[0] for key in metrics} == set()
    values = {value for pattern in re.findall(r'\{\w+=~?"([^"]+)"\}', rules) for value in pattern.split("|")}
    assert "stale" in values
    assert values - {label for key in metrics for label in key[1:]} - {"regmirror"} == set()


# --- requests ---


async def leave(program: Program, path: str, how: Any) -> Any:
    """Send a request and leave as ``how`` says; returns whether a response had begun by then."""
    loop = asyncio.get_running_loop()
    with socket.create_connection(("127.0.0.1", program.port)) as connection:
        connection.setblocking(False)
        await loop.sock_sendall(connection, raw(path))
        if how in ("half-closed", "half-closed later"):
            if how == "half-closed later":
                await loop.sock_recv(connection, 1)
            connection.shutdown(socket.SHUT_WR)
            got = b""
            while piece := await loop.sock_recv(connection, 65_536):
                got += piece
            return how == "half-closed later" or bool(got)
        if how == "reset later":
            await loop.sock_recv(connection, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            return True
        if how == "left later":
            await loop.sock_recv(connection, 1)
            return True
        return False  # at once, by FIN: the server may not read the request


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_client_that_leaves_is_counted(upstream: FakeRegistry, storage: Path, workers: int) -> None:
    """B78: once if the response had begun, never more than once; log and counter agree."""
    upstream.add_image("team/app", "1", [BLOB])
    large = upstream.add_blob("team/app", LARGE)
    broken = upstream.add_blob("team/app", random_bytes(200_000, seed=2))
    upstream.fault(Truncate(50_000), kind="blob", reference=broken, times=None)
    paths = [f"{APP}/blobs/{large}", f"{APP}/blobs/{broken}", f"{APP}/manifests/1", f"{APP}/manifests/absent"]
    ways = ["half-closed", "half-closed later", "reset later", "left later", "left at once"]
    requests = [(path, how) for path in paths for how in ways for _ in range(4)]
    random.Random(0).shuffle(requests)
    async with run_program(storage, {NAME: upstream}, workers=workers) as program:
        begun = await asyncio.gather(*(leave(program, path, how) for path, how in requests))
        metrics = await metrics_after(program, sum(begun))
        # Wait until both downloads and all followers have ended, so that no count is outstanding.
        await wait_until(lambda: len(program.log_records("download ended")) >= 2, "both downloads have ended")
        for _ in range(50):  # followers end a little later
            metrics = await read_metrics(program)
            if not metrics["regmirror_download_followers",]:
                break
            await asyncio.sleep(0.1)
        counted, lines = total(metrics, COUNTER), program.log_records("request")
    assert sum(begun) >= 4 * 3 * len(paths)
    assert any("client left" in line.get("error", "") for line in lines)
    assert sum(begun) <= counted <= len(requests)
    assert len(lines) == counted
    assert total(metrics, "regmirror_first_byte_seconds_count") == counted
    assert total(metrics, "regmirror_request_seconds_count") == counted
    assert metrics[("regmirror_download_followers",)] == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_sent_bytes_are_the_bytes_that_clients_got(
    upstream: FakeRegistry, storage: Path, image: Image, workers: int
) -> None:
    """B78: bodies of blobs, ranges and manifests count; HEAD, 304, 416 and errors do not."""
    layer, tag = f"{APP}/blobs/{image.layer_digests[0]}", f"{APP}/manifests/1"
    requests = [(layer, {}), (layer, {"Range": "bytes=100-299"}), (layer, {"Range": "bytes=999999-"})]
    requests += [(tag, {}), (f"{APP}/manifests/absent", {}), (tag, {"If-None-Match": f'"{image.digest}"'})]
    async with run_program(storage, {NAME: upstream}, workers=workers) as program:
        await program.get(layer)  # so that ranges are served from the store
        pulls = [
            program.get(path, {**more, "Connection": "close"}) for path, more in requests for _ in range(8)
        ]
        heads = [program.head(path, {"Connection": "close"}) for path in (layer, tag)]
        responses = await asyncio.gather(*pulls, *heads)
        metrics = await metrics_after(program, len(responses) + 1)
    assert {response.status for response in responses} == {200, 206, 304, 404, 416}
    got = {
        kind: sum(
            len(response.body)
            for response in responses
            if response.status < 300 and ("Accept-Ranges" in response.headers) == (kind == "blob")
        )
        for kind in ("blob", "manifest")
    }
    sent = {kind: metrics["regmirror_sent_bytes_total", kind, NAME] for kind in ("blob", "manifest")}
    assert sent == {"blob": got["blob"] + len(BLOB), "manifest": got["manifest"]}
    assert got == {"blob": 8 * (len(BLOB) + 200), "manifest": 8 * len(image.manifest)}


# --- workers that die ---


async def test_counts_of_a_killed_worker_remain(upstream: FakeRegistry, storage: Path, image: Image) -> None:
    """B78: all requests that had ended before the kill, and all later ones, are counted."""
    paths = [f"{APP}/manifests/1", f"{APP}/manifests/absent", f"{APP}/blobs/{image.layer_digests[0]}"]

    async def send_all() -> None:
        pulls = [program.get(path, {"Connection": "close"}) for path in paths * 10]
        await asyncio.gather(*pulls)

    async with run_program(storage, {NAME: upstream}, workers=2) as program:
        await send_all()
        before = await metrics_after(program, 30)
        for victim in list(program.workers()):
            workers = set(program.workers())
            os.kill(victim, signal.SIGKILL)
            await wait_until(
                lambda known=workers: len(set(program.workers()) - known) == 1, "the worker is replaced"
            )
        await wait_until(lambda: program.log.count("ended with") == 2, "the parent has noticed both")
        await send_all()
        after = await metrics_after(program, 60)
    assert total(before, COUNTER) == 30
    assert total(after, COUNTER) == total(after, "regmirror_request_seconds_count") == 60
    names = ("regmirror_sent_bytes_total", "blob", NAME), ("regmirror_sent_bytes_total", "manifest", NAME)
    assert [after[name] for name in names] == [2 * before[name] for name in names]


async def test_a_storm_in_which_workers_are_killed(
    upstream: FakeRegistry, storage: Path, image: Image
) -> None:
    """B78: no request counts twice; only requests in progress in a killed worker may be missing."""
    paths = [f"{APP}/manifests/1", f"{APP}/blobs/{image.layer_digests[0]}", f"{APP}/manifests/absent"]
    clients, each = 8, 60
    outcomes = []

    async def client(number: Any) -> None:
        for turn in range(each):
            path = paths[(number + turn) % len(paths)]
            try:
                outcomes.append(bool(await program.send_raw(raw(path))))
            except OSError:  # reset by the end of its worker
                outcomes.append(False)

    async def kill_workers() -> None:
        for kills in (1, 2):
            await wait_until(
                lambda part=kills: len(outcomes) > part * clients * each // 4,
                "part of the requests have ended",
            )
            known = set(program.workers())
            os.kill(min(known), signal.SIGKILL)
            await wait_until(
                lambda past=known: len(set(program.workers()) - past) == 1, "the worker is replaced"
            )

    async with run_program(storage, {NAME: upstream}, workers=2) as program:
        await program.get(paths[1])
        await asyncio.gather(kill_workers(), *(client(number) for number in range(clients)))
        counted = total(await read_metrics(program), COUNTER) - 1
    sent, completed = len(outcomes), sum(outcomes)
    assert sent == clients * each
    assert completed - 2 * clients <= counted <= sent
    assert sent - completed <= 2 * clients, "only requests in progress in a killed worker failed"


async def test_downloads_of_a_killed_worker_leave_the_gauges(
    upstream: FakeRegistry, storage: Path, image: Image
) -> None:
    """B78: gauges of downloads and followers count live workers only."""
    pause = upstream.pause(after=100_000, times=1)
    in_flight = ("regmirror_downloads_in_flight",), ("regmirror_download_followers",)
    async with run_program(storage, {NAME: upstream}, workers=2) as program:
        async with program.open(f"{APP}/blobs/{image.layer_digests[0]}") as response:
            await response.content.readexactly(1_000)
            metrics = await read_metrics(program)
            assert [metrics[name] for name in in_flight] == [1, 1]
            for victim in program.workers():
                os.kill(victim, signal.SIGKILL)
            await wait_until(lambda: program.log.count("ended with") == 2, "the parent has noticed both")
        pause.release()
        metrics = await read_metrics(program)
    assert [metrics[name] for name in in_flight] == [0, 0]


async def test_a_new_worker_keeps_the_gauges_of_upstreams(
    upstream: FakeRegistry, storage: Path, image: Image
) -> None:
    """B81: a failing upstream and its remaining quota stay visible, so that no alert ends."""
    upstream.rate_limit = RateLimit(limit=100, remaining=42)
    known = {"up": 0.0, "ratelimit_limit": 100.0, "ratelimit_remaining": 41.0}
    names = [(f"regmirror_upstream_{name}", NAME) for name in known]
    async with run_program(storage, {NAME: upstream}, workers=2) as program:
        assert (await program.get(f"{APP}/manifests/1")).status == 200
        await upstream.stop()
        assert (await program.get(f"{APP}/manifests/other")).status == 502
        for victim in program.workers():
            os.kill(victim, signal.SIGKILL)
        await wait_until(lambda: program.log.count("ended with") == 2, "the parent has noticed both")
        metrics = await read_metrics(program)
    assert [metrics[name] for name in names] == list(known.values())


# --- the log ---


@pytest.mark.parametrize("workers", [1, 2])
async def test_each_request_is_one_line_of_json(
    upstream: FakeRegistry, storage: Path, image: Image, workers: int
) -> None:
    """B81: each line has all fields, and there are as many lines as requests were counted."""
    wrong = upstream.add_blob("team/app", b"wrong" * 1_000)
    upstream.fault(Corrupt(), kind="blob", reference=wrong, times=None)
    upstream.fault(Status(503), kind="manifest", reference="broken", times=1)
    layer = image.layer_digests[0]
    paths = [f"{APP}/manifests/1", f"{APP}/manifests/absent", f"{APP}/manifests/broken", f"{APP}/tags/list"]
    paths += [f"{APP}/blobs/{layer}", f"{APP}/blobs/{wrong}"]
    ids = [f"ask-{number}" for number in range(5 * len(paths))]
    async with run_program(storage, {NAME: upstream}, workers=workers) as program:
        messages = [raw(path, **{"X-Request-Id": name}) for path, name in zip(paths * 5, ids, strict=True)]
        await asyncio.gather(*(program.send_raw(message) for message in messages))
        await program.send_raw(raw(f"{APP}/blobs/{layer}"))
        metrics = await metrics_after(program, len(messages) + 1)
        log = program.log.splitlines()
    lines = [line for line in map(json.loads, log) if line["event"] == "request"]
    assert total(metrics, COUNTER) == len(lines) == len(messages) + 1
    named = {line["id"]: line for line in lines}
    assert len(named) == len(lines), "each has an id of its own"
    assert set(ids) < named.keys()
    assert {line["upstream"] for line in lines} == {NAME}
    assert {line["path"] for line in lines} == set(paths)
    for line in lines:
        assert line["timestamp"].endswith("Z")
        assert line["ms"] >= line["first_byte_ms"] >= 0
        assert ("error" in line) == (line["status"] >= 400 or line["path"].endswith(wrong))
    sent = sum(line["bytes"] for line in lines if line["path"].endswith(layer))
    assert sent == 6 * len(BLOB)
    caches = {line["cache"] for line in lines if line["path"] == paths[0]}
    assert "regmirror; hit" in caches or caches == {"regmirror; fwd=miss; collapsed"} | caches
