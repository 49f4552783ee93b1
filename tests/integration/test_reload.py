"""B79: a new configuration in a mirror that runs, without a transfer cut or a connection too many."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl

import pytest
import trustme

from regmirror.errors import ConfigError
from regmirror.telemetry.events import DownloadEnded, UpstreamRequestEnded
from tests.fake_registry import FakeRegistry, basic_credentials, random_bytes
from tests.integration.test_metrics import read_metrics
from tests.mirror_fixture import NAME, run_program, wait_until

SIZE = 4_000_000
HALF = SIZE // 2
BLOB = random_bytes(SIZE)
APP = "/v2/team/app"
TAG = f"{APP}/manifests/1"
OTHER = "other.test"
ALICE = {"username": "alice", "password": "first"}
BOB = {"username": "bob", "password": "second"}
USERS = {"alice": "first", "bob": "second"}


@pytest.fixture
def digest(upstream):
    upstream.add_image("team/app", "1", [b"layer"])
    return upstream.add_blob("team/app", BLOB)


@pytest.fixture
def path(digest):
    return f"{APP}/blobs/{digest}"


@pytest.fixture
async def other():
    """Another upstream, which has the tag as well."""
    async with FakeRegistry() as registry:
        registry.add_image("team/app", "1", [b"another layer"])
        yield registry


@pytest.fixture
async def guarded():
    """An upstream that wants Alice or Bob to log in."""
    async with FakeRegistry(auth="basic", users=USERS) as registry:
        registry.add_image("team/app", "1", [b"layer"])
        yield registry


def users_seen(registry):
    """Who asked, by the order of their requests; None for nobody."""
    return [(basic_credentials(request) or (None,))[0] for request in registry.find("manifest")]


# --- transfers in flight ---


async def test_a_transfer_in_flight_goes_on(start_mirror, upstream, other, path):
    """B79: by the client it was started with, to the last byte, and asked for once."""
    mirror = await start_mirror()
    pause = upstream.pause(after=HALF, times=1)
    async with mirror.open(path) as response:
        begin = await response.content.readexactly(1_000)
        await pause.wait_for_arrivals()
        await mirror.reload({NAME: other})
        assert (await mirror.get(TAG)).status == 200  # meanwhile, of the new one
        pause.release()
        assert begin + await response.read() == BLOB
    await mirror.events.wait_for(DownloadEnded)
    assert (await mirror.get(path)).headers["Cache-Status"] == "regmirror; hit"
    assert upstream.count("blob", "GET") == 1
    assert upstream.count("manifest") == 0
    assert other.count("manifest", "GET") == 1
    assert other.count("blob") == 0


async def test_a_download_whose_upstream_is_removed_ends_well(start_mirror, upstream, other, digest):
    """B79: also when it breaks meanwhile and has to be resumed, and after its client has left."""
    both = {NAME: other, OTHER: upstream}
    mirror = await start_mirror(both)
    path = f"/v2/{OTHER}/team/app/blobs/{digest}"
    pause = upstream.pause(after=HALF, times=1)
    async with mirror.open(path) as response:
        await response.content.readexactly(1_000)
        await pause.wait_for_arrivals()
        await mirror.reload({NAME: other})
        upstream.drop_connections()
        response.close()
    await mirror.events.wait_for(DownloadEnded)
    assert mirror.blob_path(digest).read_bytes() == BLOB
    assert [request.headers.get("Range") for request in upstream.find("blob", "GET")] == [
        None,
        f"bytes={HALF}-",
    ]
    await wait_until(lambda: not upstream.open_connections, "the client that was removed has been closed")
    refused = await mirror.get(path)
    assert (refused.status, refused.code) == (404, "NAME_UNKNOWN")


async def test_a_replaced_client_is_kept_while_it_is_used(start_mirror, upstream, other, path):
    """B79: and closed afterwards, though several reloads came meanwhile."""
    mirror = await start_mirror()
    pause = upstream.pause(after=HALF, times=1)
    async with mirror.open(path) as response:
        await response.content.readexactly(1_000)
        await pause.wait_for_arrivals()
        for registry in (other, upstream, other):
            await mirror.reload({NAME: registry})
            assert (await mirror.get(f"{APP}/manifests/absent")).status == 404
            assert registry.count("manifest", reference="absent") == 1
            registry.clear()
        assert upstream.open_connections
        pause.release()
        await response.read()
    await wait_until(lambda: not upstream.open_connections, "the replaced clients have been closed")
    assert other.open_connections == 1


async def test_a_request_that_waits_ends_by_the_old_parts(start_mirror, upstream, other):
    """B79: it is answered by whom it has asked already."""
    image = upstream.add_image("team/app", "1", [b"of the first"])
    mirror = await start_mirror()
    hold = upstream.hold("manifest", times=1)
    asking = asyncio.create_task(mirror.get(TAG))
    await hold.wait_for_arrivals()
    await mirror.reload({NAME: other})
    hold.release()
    assert (await asking).headers["Docker-Content-Digest"] == image.digest
    assert other.count() == 0


async def test_it_stops_at_once_while_old_parts_are_in_use(start_mirror, upstream, other, path, storage):
    """B79: what has arrived stays for the next start."""
    mirror = await start_mirror()
    pause = upstream.pause(after=HALF, times=1)
    async with mirror.open(path) as response:
        await response.content.readexactly(1_000)
        await pause.wait_for_arrivals()
        await mirror.reload({NAME: other})
        await mirror.worker.close()
    assert mirror.staged()
    assert mirror.events.of(DownloadEnded) == []


# --- what takes effect ---


async def test_new_credentials_are_used_by_the_next_request(start_mirror, guarded):
    """B79, B62: also for what the old ones were refused a moment ago."""
    mirror = await start_mirror({NAME: guarded}, upstreams={NAME: ALICE | {"password": "wrong"}})
    assert (await mirror.get(TAG)).status == 404
    guarded.clear()
    await mirror.reload(upstreams={NAME: ALICE})
    assert (await mirror.get(TAG)).status == 200
    assert users_seen(guarded)[-1] == "alice"
    mirror.clock.advance(3600)
    await mirror.reload(upstreams={NAME: BOB})
    guarded.clear()
    assert (await mirror.get(TAG)).status == 200
    assert set(users_seen(guarded)) <= {None, "bob"}
    assert users_seen(guarded)[-1] == "bob"


async def test_an_upstream_that_did_not_change_keeps_its_token_and_connection(start_mirror, other):
    """B79, B26: nothing is learned anew because something else changed."""
    async with FakeRegistry(auth="bearer") as upstream:
        upstream.add_image("team/app", "1", [b"layer"])
        upstream.add_image("team/app", "2", [b"layer 2"])
        mirror = await start_mirror({NAME: upstream})
        await mirror.get(TAG)
        connections = upstream.connections
        upstream.clear()
        await mirror.reload({NAME: upstream, OTHER: other}, freshness={"tag_max_age": "1h"})
        await mirror.reload({NAME: upstream}, upstreams={NAME: {"deny": ["secret/**"]}})
        assert (await mirror.get(f"{APP}/manifests/2")).status == 200
        assert (upstream.count("token"), upstream.count("manifest")) == (0, 1)
        assert upstream.connections == connections


async def test_added_and_removed_upstreams(start_mirror, upstream, other, digest):
    """B79, B78: a new one is served and counted from 0; one that is gone is refused without asking."""
    mirror = await start_mirror()
    path = f"/v2/{OTHER}/team/app/manifests/1"
    assert (await mirror.get(path)).status == 404
    await mirror.reload({NAME: upstream, OTHER: other})
    requests = "regmirror_requests_total"
    metrics = await read_metrics(mirror)
    assert metrics[requests, "manifest", "miss", OTHER] == 0
    assert metrics["regmirror_upstream_up", OTHER] == 1
    assert (await mirror.get(path)).status == 200
    await mirror.reload()
    seen = other.count()
    refused = await mirror.get(path)
    assert (refused.status, refused.code) == (404, "NAME_UNKNOWN")
    assert other.count() == seen
    metrics = await read_metrics(mirror)
    assert metrics[requests, "manifest", "miss", OTHER] == 1  # what has been counted stays
    await mirror.reload({NAME: upstream, OTHER: other})
    assert (await mirror.get(path)).headers["Cache-Status"] == "regmirror; hit"


async def test_patterns_aliases_and_the_default(start_mirror, upstream, other, digest):
    """B79, B64, B58: what decides where a request goes."""
    mirror = await start_mirror({NAME: upstream, OTHER: other})
    await mirror.reload(
        default_upstream=OTHER,
        upstreams={OTHER: {"aliases": ["alias.test"]}, NAME: {"deny": ["team/**"]}},
    )
    for path in (TAG, f"{TAG}?ns=alias.test"):
        assert (await mirror.get(path)).status == 200
    denied = await mirror.get(f"{TAG}?ns={NAME}")
    assert (denied.status, upstream.count()) == (403, 0)
    assert other.count("manifest", "GET") == 1


async def test_freshness_changes(start_mirror, upstream, digest):
    """B79, B24, B25: the max age is that of the moment a tag is asked for."""
    mirror = await start_mirror()
    await mirror.get(TAG)
    upstream.clear()
    await mirror.reload(freshness={"tag_max_age": "0", "missing_max_age": "0"})
    await mirror.get(TAG)
    assert (upstream.count("manifest", "HEAD"), upstream.count("manifest", "GET")) == (1, 0)
    for count in (1, 2):
        assert (await mirror.get(f"{APP}/manifests/absent")).status == 404
        assert upstream.count("manifest", "GET", reference="absent") == count


async def test_offline_on_and_off(start_mirror, upstream, digest, path):
    """B79, B37: not one connection while it is on; all is asked again when it is off."""
    serving = {"tag_max_age": "0", "incomplete": "serve"}
    mirror = await start_mirror(freshness=serving)
    await mirror.get(TAG)
    assert (await mirror.get(f"{APP}/tags/list")).json()["tags"] == ["1"]
    upstream.drop_connections()
    upstream.clear()
    connections = upstream.connections
    await mirror.reload(freshness=serving | {"offline": True})
    assert (await mirror.get(TAG)).status == 200
    assert (await mirror.get(path)).status == 404
    assert (await mirror.get(f"{APP}/tags/list")).json()["tags"] == ["1"]
    assert upstream.count() == 0
    assert upstream.connections == connections
    await mirror.reload(freshness=serving)
    assert (await mirror.get(path)).body == BLOB
    assert (await mirror.get(TAG)).headers["Cache-Status"].startswith("regmirror; fwd=stale")


async def test_offline_holds_for_old_parts_too(start_mirror, upstream, other, path):
    """B79, B37: what is in flight goes on, but connects to nobody: it is resumed when it may."""
    mirror = await start_mirror()
    pause = upstream.pause(after=HALF, times=1)
    async with mirror.open(path) as response:
        await response.content.readexactly(1_000)
        await pause.wait_for_arrivals()
        await mirror.reload({NAME: other})
        await mirror.reload({NAME: other}, freshness={"offline": True})
        connections = upstream.connections
        upstream.drop_connections()
        await mirror.events.wait_for(DownloadEnded)
    assert mirror.events.of(DownloadEnded)[0].error
    assert upstream.connections == connections


async def test_a_certificate_authority_that_is_replaced_in_place(start_mirror, upstream, tmp_path):
    """B79, B63: the file is read again, although no key has changed."""
    file, authority = tmp_path / "ca.pem", trustme.CA()
    trustme.CA().cert_pem.write_to_path(str(file))
    async with FakeRegistry(ssl_context=server_context(authority)) as secure:
        secure.add_image("team/app", "1", [b"layer"])
        mirror = await start_mirror({NAME: secure}, upstreams={NAME: {"ca_file": str(file)}})
        assert (await mirror.get(TAG)).status == 502
        authority.cert_pem.write_to_path(str(file))
        await mirror.reload(upstreams={NAME: {"ca_file": str(file)}})
        assert (await mirror.get(TAG)).status == 200
        assert mirror.events.of(UpstreamRequestEnded)[0].reason == "certificate"


def server_context(authority):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


async def test_certificates_that_cannot_be_used_change_nothing(start_mirror, upstream, other, tmp_path):
    """B79: not even of the other upstreams."""
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")
    mirror = await start_mirror()
    before = mirror.worker.config
    with pytest.raises(ConfigError, match="ca_file"):
        await mirror.reload({NAME: other, OTHER: upstream}, upstreams={OTHER: {"ca_file": str(file)}})
    assert mirror.worker.config == before
    upstream.add_image("team/app", "1", [b"layer"])
    assert (await mirror.get(TAG)).status == 200
    assert (upstream.count("manifest"), other.count()) == (1, 0)


# --- the program ---


@pytest.mark.parametrize("workers", [1, 2])
async def test_sighup_reloads_every_worker(upstream, other, storage, workers, digest, path):
    """B79: with a transfer in flight; names are said, never a secret."""
    pause = upstream.pause(after=HALF, times=1)
    async with run_program(storage, {NAME: upstream}, workers=workers) as program:
        async with program.open(path) as response:
            begin = await response.content.readexactly(1_000)
            program.configure(
                {NAME: other}, upstreams={NAME: BOB}, server=SERVER | {"listen": "127.0.0.1:1"}, gc=GC
            )
            said = await program.reload()
            tags = [program.get(TAG, {"Connection": "close"}) for _ in range(20)]
            assert {answer.status for answer in await asyncio.gather(*tags)} == {200}
            pause.release()
            assert begin + await response.read() == BLOB
        assert said == f'regmirror: configuration reloaded: server, gc, upstreams."{NAME}"'
        waits = "regmirror: the old value stays until a restart: server.listen, server.workers"
        assert program.messages("the old value") == [waits]
        assert BOB["password"] not in program.log
        assert {line["pid"] for line in program.log_records("configuration reloaded")} == serving(program)
        assert await asyncio.to_thread(program.stop) == 0
    assert upstream.count("manifest") == 0
    assert upstream.count("blob", "GET") == 1


SERVER = {"workers": 3, "drain_timeout": "2s"}
GC = {"interval": "2h"}


def serving(program):
    return set(program.workers()) or {program.process.pid}


WRONG = [
    ("[freshness\n", "is not TOML"),
    ('[freshness]\ntag_max_agee = "1m"\n', "freshness.tag_max_agee: is not a configuration key"),
    ('[freshness]\ntag_max_age = "soon"\n', "freshness.tag_max_age = 'soon': write a duration"),
    (f'[upstreams."{NAME}"]\nca_file = "/nowhere/ca.pem"\n', "'/nowhere/ca.pem': the file does not exist"),
    (f'[upstreams."{NAME}"]\npassword = ["s3cret"]\n', f'upstreams."{NAME}".password: '),
]


def not_reloaded(program):
    return program.log_records("configuration not reloaded")


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_wrong_file_keeps_the_old_configuration(upstream, storage, workers, digest):
    """B79: key, value and reason are said in one line and logged; the next right one is taken."""
    async with run_program(storage, {NAME: upstream}, workers=workers) as program:
        before = serving(program)
        right = program.file.read_text()
        for number, (text, reason) in enumerate(WRONG, 1):
            program.file.write_text(text)
            said = await program.reload()
            assert said.startswith("regmirror: configuration not reloaded, the old one stays: ")
            assert reason in said
            assert (await program.get(TAG)).status == 200
            await wait_until(lambda count=number: len(not_reloaded(program)) == count, "it is logged")
            logged = not_reloaded(program)
            assert logged[-1]["reason"] in said
            assert logged[-1]["key"] in said
        program.file.unlink()
        assert "no such file" in await program.reload()
        program.file.write_text(right)
        assert await program.reload() == "regmirror: configuration reloaded: nothing changed"
        assert serving(program) == before
        assert "s3cret" not in program.log
        assert "Traceback" not in program.log


@pytest.mark.parametrize("workers", [1, 2])
async def test_many_sighups_in_a_row(upstream, other, storage, workers, digest, path):
    """B79: twenty are a few; the last state of the file is what counts, and nothing is cut."""
    pause = upstream.pause(after=HALF, times=1)
    async with run_program(storage, {NAME: upstream}, workers=workers) as program:
        before = serving(program)
        async with program.open(path) as response:
            begin = await response.content.readexactly(1_000)
            for number in range(20):
                program.configure({NAME: upstream}, freshness={"tag_max_age": f"{number + 1}m"})
                program.process.send_signal(signal.SIGHUP)
            program.configure({NAME: other})
            await program.reload()
            await program.reload()
            pulls = [program.get(TAG, {"Connection": "close"}) for _ in range(10)]
            assert {answer.status for answer in await asyncio.gather(*pulls)} == {200}
            pause.release()
            assert begin + await response.read() == BLOB
        assert serving(program) == before
        assert "Traceback" not in program.log
        assert await asyncio.to_thread(program.stop) == 0
    assert upstream.count("manifest") == 0
    assert other.count("manifest", "GET") <= workers


async def test_a_worker_that_starts_later_has_the_new_configuration(upstream, other, storage, digest):
    """B79: the parent keeps it for those that replace others, and a wrong one for nobody."""
    async with run_program(storage, {NAME: upstream}, workers=2) as program:
        program.configure({NAME: other})
        await program.reload()
        program.file.write_text("wrong =")
        await program.reload()
        before = serving(program)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await wait_until(lambda: len(serving(program) - before) == 2, "both were replaced")
        assert (await program.get(TAG)).status == 200
    assert (upstream.count("manifest"), other.count("manifest", "GET")) == (0, 1)
