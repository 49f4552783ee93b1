"""The clients: `reader` for blobs, `wrk` for manifests; each of one thread.

`reader.c` lets the kernel drop the bytes, so that it takes next to nothing from the cores that
the servers need. Over TLS it decrypts them, which every real client has to do: the same for all.
`wrk` reads in pieces of 8 KiB, which is fit for manifests and for nothing larger.
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
TIMEOUT = 300.0  # seconds; whatever takes longer hangs

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass(frozen=True)
class Address:
    """Where a server listens, and the version of TLS to speak to it: "1.2", "1.3", or none."""

    port: int
    tls: str = ""
    host: str = "127.0.0.1"


@dataclass(frozen=True)
class Reading:
    """What `reader` saw; times in seconds."""

    seconds: float
    bytes: int
    responses: int
    first_byte: dict[str, float]
    last_byte: dict[str, float]

    @property
    def rate(self) -> float:
        """GB/s."""
        return self.bytes / self.seconds / 1e9

    @property
    def gibibytes(self) -> float:
        return self.bytes / 2**30


@dataclass(frozen=True)
class Load:
    """What `wrk` saw; requests a second, and latencies in seconds."""

    rate: float
    p50: float
    p99: float


class Reader:
    """The compiled program."""

    def __init__(self, directory: Path) -> None:
        self._program = directory / "reader"
        command = ["cc", "-O2", "-o", str(self._program), str(SOURCE), "-lssl", "-lcrypto"]
        subprocess.run(command, check=True)

    def read(self, address: Address, paths: Sequence[str], **options: Any) -> Reading:
        """Read to the end; see ``start`` for the options."""
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
        """Begin to read: every path once, or round and round for so many ``seconds``.

        ``rate`` makes slow readers of so many bytes a second each. Of ``stride`` connections
        each takes its share of the paths.
        """
        options = ["-c", str(connections), "-s", str(stride), "-d", str(seconds), "-r", str(rate)]
        if address.tls:
            options += ["-t", address.tls]
        command = [str(self._program), *options, address.host, str(address.port), *paths]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def finish(self, process: subprocess.Popen[str]) -> Reading:
        """What was read, when all is read."""
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
    """Ask for one path over and over."""
    scheme = "https" if address.tls else "http"
    url = f"{scheme}://{address.host}:{address.port}{path}"
    # wrk takes whole seconds only.
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
    """The figures in what `wrk --latency` prints. Raises ValueError when requests failed."""
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
