"""Clients with one thread each: `reader` for blobs, `wrk` for manifests.

`reader.c` lets the kernel drop the bytes and so uses little CPU of the cores that the servers
need. Over TLS it decrypts them, as every client must; the cost is equal for all servers.
`wrk` reads 8 KiB at a time, which is enough for manifests and too slow for blobs.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.content import ACCEPT

SOURCE = Path(__file__).with_name("reader.c")
TIMEOUT = 300.0  # seconds, far above the longest measurement

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass(frozen=True)
class Address:
    """Address of a server; ``tls`` is the TLS version ("1.2", "1.3", "any"), empty for plain HTTP."""

    port: int
    tls: str = ""
    host: str = "127.0.0.1"


@dataclass(frozen=True)
class Reading:
    """Result of `reader`; times in seconds."""

    seconds: float
    bytes: int
    responses: int
    first_byte: dict[str, float]
    last_byte: dict[str, float]

    @property
    def rate(self) -> float:
        """Throughput in GB/s."""
        return self.bytes / self.seconds / 1e9

    @property
    def gibibytes(self) -> float:
        return self.bytes / 2**30


@dataclass(frozen=True)
class Load:
    """Result of `wrk`: requests per second, and latencies in seconds."""

    rate: float
    p50: float
    p99: float


class Reader:
    """Compiles `reader.c` into ``directory`` and runs it."""

    def __init__(self, directory: Path) -> None:
        self._program = directory / "reader"
        command = ["cc", "-O2", "-o", str(self._program), str(SOURCE), "-lssl", "-lcrypto"]
        subprocess.run(command, check=True)

    def read(self, address: Address, paths: Sequence[str], **options: Any) -> Reading:
        """Run to the end; ``options`` are those of ``start``."""
        return self.finish(self.start(address, paths, **options))

    def start(
        self,
        address: Address,
        paths: Sequence[str],
        *,
        connections: int = 1,
        seconds: float = 0,
        rate: float = 0,
        stride: int = 1,
    ) -> subprocess.Popen[str]:
        """Start to read each path once or, with ``seconds``, repeatedly for that time.

        ``rate`` limits each connection to that many bytes per second. ``stride`` consecutive
        connections share the paths.
        """
        options = ["-c", str(connections), "-s", str(stride), "-d", str(seconds), "-r", str(rate)]
        if address.tls:
            options += ["-t", address.tls]
        command = [str(self._program), *options, address.host, str(address.port), *paths]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def finish(self, process: subprocess.Popen[str]) -> Reading:
        """Wait for the process; raises CalledProcessError if it failed, TimeoutExpired if it hangs."""
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)
        return Reading(**json.loads(output))


def run_wrk(address: Address, path: str, *, connections: int, seconds: float) -> Load:
    """Request one path repeatedly."""
    scheme = "https" if address.tls else "http"
    url = f"{scheme}://{address.host}:{address.port}{path}"
    # wrk accepts only whole seconds.
    options = [
        "-t1",
        f"-c{connections}",
        f"-d{max(1, round(seconds))}s",
        "--latency",
        "-H",
        f"Accept: {ACCEPT}",
    ]
    command = ["wrk", *options, url]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT).stdout
    return parse_wrk(output)


def parse_wrk(output: str) -> Load:
    """Parse the output of `wrk --latency`. Raises ValueError if requests failed or a figure is missing."""
    if failed := re.search(r"Non-2xx or 3xx responses: \d+|Socket errors: .*", output):
        raise ValueError(f"wrk: {failed[0]}")
    rate = re.search(r"Requests/sec:\s+([0-9.]+)", output)
    at = {share: _latency(output, share) for share in (50, 99)}
    if rate is None:
        raise ValueError(f"wrk printed no rate: {output}")
    return Load(float(rate[1]), at[50], at[99])


def _latency(output: str, share: int) -> float:
    found = re.search(rf"^\s+{share}%\s+([0-9.]+)(us|ms|s|m)$", output, re.MULTILINE)
    if found is None:
        raise ValueError(f"wrk printed no latency: {output}")
    return float(found[1]) * _UNITS[found[2]]
