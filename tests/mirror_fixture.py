"""The mirror under test: the real application in the test process, or the real program beside it.

async with run_mirror(tmp_path, {"registry.test": upstream}, freshness={"tag_max_age": "1m"}) as mirror:
    response = await mirror.get("/v2/team/app/manifests/1")
    mirror.clock.advance(61)
    ...
    assert mirror.events.of(RequestServed)[0].result == "miss"

async with run_program(tmp_path, {"registry.test": upstream}, workers=2) as program:
    response = await program.get("/v2/team/app/manifests/1")
    program.kill()
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import trustme
from multidict import CIMultiDictProxy
from yarl import URL

from regmirror.config.schema import BUILT_IN, Config
from regmirror.oci.names import Digest
from regmirror.server.app import open_http_server, open_worker, prepare
from regmirror.server.generation import Times
from regmirror.server.http_server import HttpServer
from regmirror.server.listener import bind, url_of
from regmirror.server.worker import Worker
from regmirror.telemetry.events import Event
from tests.fake_registry import FakeRegistry
from tests.fake_registry.notifier import TIMEOUT, Notifier

E = TypeVar("E", bound=Event)
START_TIMEOUT = 20.0  # seconds until a started program must be ready
NAME = "registry.test"  # the default upstream of every mirror here, if there is one of this name


async def wait_until(condition: Callable[[], bool], description: str, timeout: float = TIMEOUT) -> None:
    """Poll until the condition holds. For state that no event announces; else use a `Notifier`."""
    try:
        async with asyncio.timeout(timeout):
            while not condition():  # noqa: ASYNC110  # no event is set
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {timeout} s: {description}") from None


def list_open_files(pid: int | str = "self") -> list[str]:
    """The targets of all descriptors of a process."""
    names = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            names.append(str(path.readlink()))
    return names


class Clock:
    """The wall clock and the monotonic clock of one mirror: both run, and tests move them forward."""

    def __init__(self) -> None:
        self.wall_ahead = 0.0
        self.monotonic_ahead = 0.0

    def advance(self, seconds: float) -> None:
        """Move both clocks forward."""
        self.wall_ahead += seconds
        self.monotonic_ahead += seconds

    def now(self) -> float:
        return time.time() + self.wall_ahead

    def monotonic(self) -> float:
        return time.monotonic() + self.monotonic_ahead


class EventLog(Notifier):
    """Every event that the mirror emitted, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.all.append(event)
        self.notify()

    def of(self, kind: type[E]) -> list[E]:
        """The events of one class so far."""
        return [event for event in self.all if isinstance(event, kind)]

    async def wait_for(self, kind: type[E], count: int = 1) -> list[E]:
        """Wait until there have been ``count`` events of a class, and return them."""
        await self.wait_until(lambda: len(self.of(kind)) >= count, TIMEOUT, f"{count} x {kind.__name__}")
        return self.of(kind)


@dataclass(frozen=True)
class Response:
    """A complete response."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The OCI code of the first error."""
        return str(self.json()["errors"][0]["code"])


class Client:
    """A client of one server; paths are sent byte for byte as given."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self.url = url
        self.http = http

    @property
    def port(self) -> int:
        port = URL(self.url).port
        assert port is not None
        return port

    def open(
        self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Send a request; the caller reads the body."""
        url = URL(self.url + path, encoded=True)
        return self.http.request(method, url, headers=headers, allow_redirects=False)

    async def request(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> Response:
        """Send a request and read the whole response; raises aiohttp.ClientError if it ends short."""
        async with self.open(path, method, headers) as response:
            return Response(response.status, response.headers, await response.read())

    async def get(self, path: str, headers: Mapping[str, str] | None = None) -> Response:
        return await self.request("GET", path, headers)

    async def head(self, path: str, headers: Mapping[str, str] | None = None) -> Response:
        return await self.request("HEAD", path, headers)

    async def send_raw(self, request: bytes) -> bytes:
        """Send bytes on a new connection and return everything received until FIN.

        Raises ConnectionResetError if the response ends by RST.
        """
        loop = asyncio.get_running_loop()
        received = bytearray()
        with socket.create_connection((URL(self.url).host, self.port)) as connection:
            connection.setblocking(False)
            await loop.sock_sendall(connection, request)
            async with asyncio.timeout(TIMEOUT):
                while piece := await loop.sock_recv(connection, 65_536):
                    received += piece
        return bytes(received)


@dataclass
class InProcessMirror:
    """A mirror in this process, its clock, its events and its files."""

    config: Config
    client: Client
    server: HttpServer
    worker: Worker
    rewrite: Callable[..., Config]
    clock: Clock = field(default_factory=Clock)
    events: EventLog = field(default_factory=EventLog)

    def __post_init__(self) -> None:
        self.open, self.request = self.client.open, self.client.request
        self.get, self.head, self.send_raw = self.client.get, self.client.head, self.client.send_raw

    @property
    def url(self) -> str:
        return self.client.url

    @property
    def port(self) -> int:
        return self.client.port

    @property
    def http(self) -> aiohttp.ClientSession:
        return self.client.http

    @property
    def root(self) -> Path:
        return Path(self.config.storage.path)

    async def reload(
        self, registries: Mapping[str, FakeRegistry | str] | None = None, /, **tables: Any
    ) -> None:
        """Reload with changed tables, and other upstreams if given; other keys stay as at the start."""
        self.config = self.rewrite(registries, **tables)
        await self.worker.reload(self.config)

    async def wait_for_started(self, count: int) -> None:
        """Wait until ``count`` requests in total have reached their handlers, and until each handler
        waits for something.
        """
        await wait_until(lambda: self.server.requests_count >= count, f"{count} requests have begun")
        for _ in range(3):
            await asyncio.sleep(0)

    def blob_path(self, digest: str) -> Path:
        """The path of the blob, whether it is stored or not."""
        return self.root / "blobs" / Digest(digest).algorithm / Digest(digest).encoded

    def stored(self) -> set[str]:
        """The digests of all stored blobs."""
        return {f"{path.parent.name}:{path.name}" for path in (self.root / "blobs").glob("*/*")}

    def staged(self) -> list[str]:
        """The names of all files in the staging directory."""
        return sorted(path.name for path in (self.root / "staging").iterdir())


def make_config(storage: Path, upstreams: Mapping[str, FakeRegistry | str], /, **tables: Any) -> Config:
    """A configuration with these upstreams alone: name to registry or URL.

    ``tables`` are tables of the file; those of one upstream add to its address:
    ``upstreams={"registry.test": {"deny": ["secret/**"]}}``. ``default_upstream`` is
    ``registry.test``, or else the first.
    """
    return Config.model_validate(_tables(storage, upstreams, **tables))


def _tables(storage: Path, upstreams: Mapping[str, FakeRegistry | str], /, **tables: Any) -> dict[str, Any]:
    given = tables.pop("upstreams", {})
    urls = {name: item if isinstance(item, str) else item.url for name, item in upstreams.items()}
    merged: dict[str, Any] = {name: {"enabled": False} for name in BUILT_IN}
    merged |= {name: {"url": url, **given.get(name, {})} for name, url in urls.items()}
    default = NAME if NAME in urls else next(iter(urls))
    merged.setdefault(default, {})
    kept = {"path": str(storage), **tables.pop("storage", {})}
    return {"default_upstream": default, **tables, "storage": kept, "upstreams": merged}


@asynccontextmanager
async def run_mirror(
    storage: Path,
    upstreams: Mapping[str, FakeRegistry | str],
    /,
    *,
    clock: Clock | None = None,
    stale_deadline: float = 1.5,
    cold_deadline: float = 2.8,
    authority: trustme.CA | None = None,
    **tables: Any,
) -> AsyncIterator[InProcessMirror]:
    """Run the application of one worker, as ``regmirror.server.workers`` does, on a free port.

    Several at once on one ``storage`` are several workers of one mirror. ``stale_deadline`` is how
    long a client waits for an upstream while a stale response is available. With an ``authority``
    it serves by TLS.
    """
    clock, events = clock or Clock(), EventLog()
    config = make_config(storage, upstreams, **tables)
    prepare(config)
    times = Times(
        now=clock.now, clock=clock.monotonic, stale_deadline=stale_deadline, cold_deadline=cold_deadline
    )

    def rewrite(others: Mapping[str, FakeRegistry | str] | None, /, **changed: Any) -> Config:
        return make_config(storage, others or upstreams, **{**tables, **changed})

    async with open_worker(config, events, times=times) as worker:
        [sock], server = bind("127.0.0.1:0", 1), open_http_server(worker)
        url = url_of(sock, is_secure=authority is not None)
        server.listen(sock, _server_context(authority) if authority else None)
        try:
            async with _open_session(authority) as http:
                yield InProcessMirror(config, Client(url, http), server, worker, rewrite, clock, events)
        finally:
            await server.close()


def _server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def _open_session(authority: trustme.CA | None = None) -> aiohttp.ClientSession:
    trusted = ssl.create_default_context()
    if authority:
        authority.configure_trust(trusted)
    connector = aiohttp.TCPConnector(limit=0, ssl=trusted)
    timeout = aiohttp.ClientTimeout(total=30)
    return aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False)


# --- the program ---


class Program(Client):
    """``python -m regmirror serve`` as a child process; ``log`` is its standard error.

    ``configure`` rewrites its configuration ``file``.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        file: Path,
        configure: Callable[..., None],
        log: Path,
        http: aiohttp.ClientSession,
    ) -> None:
        super().__init__("", http)
        self.process, self.file, self.configure = process, file, configure
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    async def wait_ready(self) -> None:
        """Wait for the line with the address that the program serves at."""
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(START_TIMEOUT):
                line = (await asyncio.to_thread(self.process.stdout.readline)).decode()
        except TimeoutError:
            raise AssertionError(f"not ready within {START_TIMEOUT} s:\n{self.log}") from None
        words = line.split()
        assert words[:1] == ["regmirror"], f"printed {line!r}:\n{self.log}"
        self.url = next(word for word in words if word.startswith("http"))

    def messages(self, text: str) -> list[str]:
        """The plain lines of the log that begin with ``regmirror: `` and this text."""
        return [line for line in self.log.splitlines() if line.startswith(f"regmirror: {text}")]

    def log_records(self, event: str) -> list[dict[str, Any]]:
        """The JSON lines of the log with this event."""
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    async def reload(self) -> str:
        """Send SIGHUP, wait until every worker has reloaded, and return the plain line about it."""
        before, done = len(self.messages("configuration ")), len(self.log_records("configuration reloaded"))
        self.process.send_signal(signal.SIGHUP)
        await wait_until(
            lambda: len(self.messages("configuration ")) > before, "the result of SIGHUP is logged"
        )
        line = self.messages("configuration ")[-1]
        if line.startswith("regmirror: configuration reloaded"):
            count = done + (len(self.workers()) or 1)
            await wait_until(
                lambda: len(self.log_records("configuration reloaded")) >= count, "all have reloaded"
            )
        return line

    def workers(self) -> list[int]:
        """The ids of the worker processes, if there are several."""
        return [pid for pid in _all_processes() if _parent(pid) == self.process.pid]

    def kill(self) -> None:
        """Send SIGKILL to all its processes, as a power cut ends them."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(TIMEOUT)

    def stop(self) -> int:
        """Send SIGTERM, kill the program if it does not end, and return its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(TIMEOUT)
        status = self.process.poll()
        self.kill()
        return -signal.SIGKILL if status is None else status

    def memory(self) -> int:
        """Resident bytes of the first process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024


@asynccontextmanager
async def run_program(
    storage: Path,
    upstreams: Mapping[str, FakeRegistry | str],
    /,
    *,
    workers: int = 1,
    through: Sequence[str] = (),
    **tables: Any,
) -> AsyncIterator[Program]:
    """Run the program with a configuration file beside ``storage``, and end it by its process id.

    Several at once on one ``storage`` share it as workers do, each with a port of its own.
    ``through`` is a command that starts the program, such as ``ip netns exec NAME``.
    """
    number = len(list(storage.parent.glob("*.toml")))
    file, log = storage.parent / f"mirror-{number}.toml", storage.parent / f"mirror-{number}.log"
    server = {"listen": "127.0.0.1:0", "workers": workers, "drain_timeout": "1s", **tables.pop("server", {})}

    def configure(registries: Mapping[str, FakeRegistry | str] = upstreams, /, **changed: Any) -> None:
        given = {"server": server, **tables, **changed}
        file.write_text(_toml(_tables(storage, registries, **given)), encoding="utf-8")

    configure()
    own = {name: value for name, value in os.environ.items() if not name.startswith("REGMIRROR_")}
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220  # a thread waits for it
            [*through, sys.executable, "-m", "regmirror", "--config", str(file), "serve"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            env=own,
            start_new_session=True,
        )
    async with _open_session() as http:
        program = Program(process, file, configure, log, http)
        try:
            await program.wait_ready()
            yield program
        finally:
            await asyncio.to_thread(program.stop)
            assert process.stdout is not None
            process.stdout.close()


def _toml(tables: Mapping[str, Any], prefix: str = "") -> str:
    """The tables as TOML; JSON strings, numbers and lists are valid TOML."""
    plain = {name: value for name, value in tables.items() if not isinstance(value, Mapping)}
    lines = [f"{json.dumps(name)} = {json.dumps(value)}" for name, value in plain.items()]
    for name in tables.keys() - plain.keys():
        path = f"{prefix}{json.dumps(name)}"
        lines += [f"[{path}]", _toml(tables[name], f"{path}.")]
    return "\n".join(lines)


def _all_processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _parent(pid: int) -> int:
    """The id of a process's parent; 0 if the process has ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return int(status.rpartition(")")[2].split()[1])
