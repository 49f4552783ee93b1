"""What ``/metrics`` says of requests, whoever made them, however they ended."""

from __future__ import annotations

import asyncio
import re
import socket
from collections import Counter

import pytest
from prometheus_client.parser import text_string_to_metric_families

from regmirror.telemetry.events import KINDS, RESULTS, DownloadEnded
from tests.fake_registry import Corrupt, Status, random_bytes
from tests.mirror_fixture import NAME, run_program, wait_until

BLOB = random_bytes(300_000)
APP = "/v2/team/app"


async def read_metrics(client):
    """Every sample: (name, labels in order of their names) to its value."""
    got = await client.get("/metrics", {"Connection": "close"})
    assert got.status == 200
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(got.body.decode())
        for sample in family.samples
    }


def total(metrics, name):
    """The sum over all labels."""
    return sum(value for key, value in metrics.items() if key[0] == name)


async def test_every_request_is_counted_once(mirror, upstream):
    """B78: under its kind and its result."""
    image = upstream.add_image("team/app", "1", [BLOB])
    paths = [f"{APP}/manifests/1", f"{APP}/manifests/absent", f"{APP}/blobs/{image.layer_digests[0]}"]
    paths += [f"{APP}/tags/list", f"{APP}/referrers/{image.digest}", f"{APP}/blobs/sha256:odd"]
    for _ in range(2):
        for path in paths:
            await mirror.get(path)
        await mirror.events.wait_for(DownloadEnded)
    await mirror.head(paths[0])
    for unrelated in ("/v2/", "/healthz", "/nothing"):
        await mirror.get(unrelated)
    metrics = await read_metrics(mirror)
    assert total(metrics, "regmirror_requests_total") == 2 * len(paths) + 1
    name = "regmirror_requests_total"
    assert metrics[name, "manifest", "miss", NAME] == 1
    assert metrics[name, "manifest", "hit", NAME] == 2
    assert metrics[name, "manifest", "error", NAME] == 2
    assert metrics[name, "blob", "miss", NAME] == 1
    assert metrics[name, "blob", "hit", NAME] == 1
    assert metrics[name, "blob", "error", NAME] == 2
    assert metrics["regmirror_fetched_bytes_total", "blob", NAME] == len(BLOB)
    assert metrics["regmirror_sent_bytes_total", "blob", NAME] == 2 * len(BLOB)


async def test_requests_that_name_no_upstream_are_counted_too(mirror):
    """B78: without making a label of what clients invent."""
    await mirror.get("/v2/x/manifests/1?ns=unknown.example")
    metrics = await read_metrics(mirror)
    assert metrics["regmirror_requests_total", "manifest", "error", "unknown"] == 1
    assert not any("unknown.example" in key for key in metrics)


async def test_the_hits_of_memory_are_shown(mirror, upstream):
    image = upstream.add_image("team/app", "1", [BLOB])
    path = f"{APP}/manifests/{image.digest}"
    name = "regmirror_memory_lookups"
    assert (await read_metrics(mirror))[name, "manifests", "hit"] == 0
    await mirror.get(path)
    before = await read_metrics(mirror)
    await mirror.get(path)
    after = await read_metrics(mirror)
    assert after[name, "manifests", "hit"] > before[name, "manifests", "hit"]
    assert after[name, "manifests", "miss"] == before[name, "manifests", "miss"]


async def test_each_worker_shows_its_own_memory(upstream, storage):
    async with run_program(storage, {NAME: upstream}, workers=2) as program:
        metrics = await read_metrics(program)
        found = [key for key in metrics if key[0] == "regmirror_memory_lookups" and "tags" in key]
        assert {key[2] for key in found} == {str(pid) for pid in program.workers()}
        assert {key[3] for key in found} == {"hit", "miss"}


@pytest.mark.parametrize("workers", [1, 2])
async def test_the_sum_of_all_results_is_the_number_of_requests(upstream, storage, workers):
    """B78: with aborts, errors and wrong bytes, over all workers, scraped from either of them."""
    image = upstream.add_image("team/app", "1", [BLOB, b"second"])
    wrong = upstream.add_blob("team/app", b"wrong" * 1_000)
    upstream.fault(Corrupt(), kind="blob", reference=wrong, times=None)
    upstream.fault(Status(503), kind="manifest", reference="broken", times=None)
    paths = [f"{APP}/manifests/{name}" for name in ("1", "absent", "broken", image.digest)]
    paths += [f"{APP}/blobs/{digest}" for digest in (*image.layer_digests, wrong)]
    async with run_program(storage, {NAME: upstream}, workers=workers) as program:
        asks = [_ask(program, path) for path in paths for _ in range(10)]
        leaves = [_ask_and_leave(program, paths[4]) for _ in range(20)]
        statuses = Counter(await asyncio.gather(*asks, *leaves))
        made = len(asks) + len(leaves)
        assert sum(statuses.values()) == made
        await wait_until(lambda: program.log.count('"event":"request"') >= made, "all have ended")
        for _ in range(4):  # whichever worker answers
            metrics = await read_metrics(program)
            assert total(metrics, "regmirror_requests_total") == made
            assert total(metrics, "regmirror_first_byte_seconds_count") == made
            assert total(metrics, "regmirror_download_followers") == 0
        errors = sum(value for key, value in metrics.items() if key[:3:2] == (COUNTER, "error"))
        refused = sum(statuses[status] for status in ("404", "502", "503"))  # 503: its circuit is open
        assert errors >= refused >= 20


COUNTER = "regmirror_requests_total"


async def _ask(program, path):
    response = await program.send_raw(f"GET {path} HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n".encode())
    return response[9:12].decode()


async def _ask_and_leave(program, path):
    loop = asyncio.get_running_loop()
    with socket.create_connection(("127.0.0.1", program.port)) as connection:
        connection.setblocking(False)
        await loop.sock_sendall(connection, f"GET {path} HTTP/1.1\r\nHost: m\r\n\r\n".encode())
        assert await loop.sock_recv(connection, 100)
    return "left"


async def test_what_is_in_flight_is_a_gauge_that_falls_back_to_zero(mirror, upstream):
    digest = upstream.add_blob("team/app", BLOB)
    pause = upstream.pause(after=1_000)
    async with mirror.open(f"{APP}/blobs/{digest}") as response:
        await response.content.readexactly(900)
        metrics = await read_metrics(mirror)
        assert metrics[("regmirror_downloads_in_flight",)] == 1
        assert metrics[("regmirror_download_followers",)] == 1
        pause.release()
        await response.read()
    await mirror.events.wait_for(DownloadEnded)
    metrics = await read_metrics(mirror)
    assert metrics[("regmirror_downloads_in_flight",)] == 0
    assert metrics[("regmirror_download_followers",)] == 0
    assert metrics[("regmirror_store_blobs",)] == 1
    assert metrics[("regmirror_store_bytes",)] == len(BLOB)


async def test_wrong_bytes_are_counted(mirror, upstream):
    """B2, B6: an operator sees which upstream lies."""
    digest = upstream.add_blob("team/app", BLOB)
    upstream.fault(Corrupt(), kind="blob", method="GET")
    await mirror.send_raw(f"GET {APP}/blobs/{digest} HTTP/1.0\r\n\r\n".encode())
    await mirror.events.wait_for(DownloadEnded)
    metrics = await read_metrics(mirror)
    assert metrics["regmirror_verification_failures_total", "blob", NAME] == 1


async def test_every_child_of_the_request_counter_exists_from_the_start(mirror):
    """B81: so that rates and alerts need no special cases."""
    metrics = await read_metrics(mirror)
    expected = {(COUNTER, kind, result, NAME) for kind in KINDS for result in RESULTS}
    assert expected <= metrics.keys()
    assert total(metrics, COUNTER) == 0


async def test_the_text_has_help_and_type_for_each_metric(mirror):
    """B81: as `promtool check metrics` wants it."""
    text = (await mirror.get("/metrics")).body.decode()
    names = set(re.findall(r"^# TYPE (regmirror_\w+) ", text, re.MULTILINE))
    assert names
    assert names == set(re.findall(r"^# HELP (regmirror_\w+) \S", text, re.MULTILINE))
    counters = re.findall(r"^# TYPE (\w+) counter", text, re.MULTILINE)
    assert all(name.endswith("_total") for name in counters)
