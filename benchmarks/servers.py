"""The measured servers: configuration, start, observation and stop."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import nginx
from benchmarks.clients import Address
from benchmarks.content import ACCEPT
from benchmarks.place import Place
from benchmarks.processes import cpu_seconds, resident, tree

DIRECT = "direct"  # requests go to the upstream itself
DOCKER_REGISTRY = "docker-registry"
DRAYAGE = "drayage"
NGINX = "nginx"
NGINX_CACHE = "nginx-cache"  # proxy_cache, without verification
PEERS = (DOCKER_REGISTRY, DRAYAGE, NGINX, NGINX_CACHE, DIRECT)

#: Programs that scripts/install-bench-parts installs from other sources than Debian.
PARTS = Path(__file__).parents[1] / "build" / "bench"

START_TIMEOUT = 30.0
STOP_TIMEOUT = 20.0
QUIET = 0.2  # seconds without CPU time, after which a server counts as idle
QUIET_TIMEOUT = 60.0


class Server:
    """A server process, perhaps with worker processes, on a loopback port.

    Its output goes to a file, as in production.
    """

    def __init__(
        self, name: str, place: Place, command: list[str], environment: dict[str, str] | None = None
    ) -> None:
        self.name = name
        self.place = place
        self._command = command
        self._environment = os.environ | {"LC_ALL": "C"} | (environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    def address(self, tls: str = "any") -> Address:
        """Its address; ``tls`` selects the TLS version if the server uses TLS."""
        return Address(self.place.port, tls if self.place.secure else "")

    def start(self) -> float:
        """Start the process; return the seconds until its first successful response."""
        began = time.monotonic()
        with (self.place.directory / "output.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                cwd=self.place.directory,
                env=self._environment,
                start_new_session=True,
            )
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() - began > START_TIMEOUT:
                raise RuntimeError(f"{self.name} does not start: {self.output_end()}")
            time.sleep(0.005)
        return time.monotonic() - began

    def stop(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def output_end(self) -> str:
        """The last 2000 characters of its output."""
        return (self.place.directory / "output.log").read_text(errors="replace")[-2000:]

    def get(self, path: str) -> bytes:
        """The body of one response. Raises OSError for an error status."""
        scheme = "https" if self.place.secure else "http"
        context = ssl.create_default_context(cafile=str(self.place.certificates.authority))
        url = f"{scheme}://127.0.0.1:{self.place.port}{path}"
        request = urllib.request.Request(url, headers={"Accept": ACCEPT})
        with urllib.request.urlopen(request, timeout=60, context=context) as response:
            return bytes(response.read())

    def cpu(self) -> float:
        """CPU seconds of all of its processes since their start."""
        return cpu_seconds(self._pid)

    def resident_worker(self) -> int:
        """Resident bytes of the largest worker."""
        workers = tree(self._pid)
        return max(map(resident, workers[1:] or workers))

    def wait_until_quiet(self) -> None:
        """Wait until it uses no CPU: files are stored and upstream connections idle."""
        deadline, before = time.monotonic() + QUIET_TIMEOUT, -1.0
        while (now := self.cpu()) - before > 0.01 and time.monotonic() < deadline:
            before = now
            time.sleep(QUIET)

    @property
    def _pid(self) -> int:
        assert self._process is not None, f"{self.name} does not run"
        return self._process.pid

    def _is_ready(self) -> bool:
        try:
            self.get("/v2/")
        except OSError:  # no connection, or an error status
            return False
        return True


@dataclass(frozen=True)
class Traffic:
    """Requests and bytes that an upstream has sent."""

    requests: int
    bytes: int

    def __sub__(self, other: Traffic) -> Traffic:
        return Traffic(self.requests - other.requests, self.bytes - other.bytes)


class Upstream(Server):
    """The upstream registry: nginx with static files and a log of bytes sent."""

    def __init__(self, place: Place) -> None:
        configuration = nginx.static_configuration(place, logs_traffic=True)
        super().__init__(DIRECT, place, ["nginx", "-c", place.write("nginx.conf", configuration)])

    @property
    def url(self) -> str:
        return f"{'https' if self.place.secure else 'http'}://127.0.0.1:{self.place.port}"

    def traffic(self) -> Traffic:
        """Traffic of all ended requests since the start."""
        sizes = [int(line) for line in (self.place.directory / nginx.TRAFFIC_LOG).read_text().split()]
        return Traffic(len(sizes), sum(sizes))


def regmirror(name: str, program: Path, place: Place, *, more: Sequence[str] = ()) -> Server:
    """regmirror as in production: one worker per core, metrics, and the request log in a file.

    ``more`` adds lines to the configuration.
    """
    files = place.certificates
    lines = ['default_upstream = "registry.test"', "[server]"]
    lines += [f'listen = "127.0.0.1:{place.port}"', "workers = 0"]
    if place.secure:
        lines += ["[server.tls]", f'certificate = "{files.certificate}"', f'key = "{files.key}"']
    lines += ["[storage]", f'path = "{place.directory}/data"']
    lines += ['[upstreams."registry.test"]', f'url = "{place.upstream}"', f'ca_file = "{files.authority}"']
    configuration = place.write("mirror.toml", "\n".join([*lines, *more]))
    return Server(name, place, [str(program), "--config", configuration, "serve"])


def _docker_registry(place: Place) -> Server:
    """docker-registry with its fastest settings: no access log, and descriptors in memory."""
    files = place.certificates
    secure = {"tls": {"certificate": str(files.certificate), "key": str(files.key)}} if place.secure else {}
    configuration = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(place.directory / "data")},
            "cache": {"blobdescriptor": "inmemory"},
        },
        "http": {"addr": f"127.0.0.1:{place.port}", **secure},
        "proxy": {"remoteurl": place.upstream},
    }
    path = place.write("config.yml", json.dumps(configuration))  # JSON is YAML
    trust = {"SSL_CERT_FILE": str(files.authority)}
    return Server(DOCKER_REGISTRY, place, ["docker-registry", "serve", path], trust)


def _drayage(place: Place) -> Server:
    (place.directory / "data").mkdir()
    lines = [f'listen = "127.0.0.1:{place.port}"', f'cache_dir = "{place.directory}/data"']
    lines += ["[upstreams.docker_io]", f'registry = "{place.upstream}"']
    path = place.write("drayage.toml", "\n".join(lines))
    program = PARTS / "drayage" / "bin" / "drayage"
    return Server(DRAYAGE, place, [str(program), "serve", "-c", path], {"RUST_LOG": "warn"})


def _nginx(place: Place) -> Server:
    configuration = nginx.static_configuration(place, logs_traffic=False)
    return Server(NGINX, place, ["nginx", "-c", place.write("nginx.conf", configuration)])


def _nginx_cache(place: Place) -> Server:
    configuration = nginx.cache_configuration(place)
    return Server(NGINX_CACHE, place, ["nginx", "-c", place.write("nginx.conf", configuration)])


MAKERS: dict[str, Callable[[Place], Server]] = {
    DOCKER_REGISTRY: _docker_registry,
    DRAYAGE: _drayage,
    NGINX: _nginx,
    NGINX_CACHE: _nginx_cache,
}
