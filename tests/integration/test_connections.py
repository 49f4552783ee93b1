"""Connections: how many are open, what follows the last request of one, and readers that stop."""

from __future__ import annotations

import asyncio
import socket
import sys

import pytest

TAG = "/v2/team/app/manifests/1"
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
os.execvp(sys.argv[3], sys.argv[3:])
"""


def limited(soft, hard):
    """A command that runs another one with so many descriptors."""
    return (sys.executable, "-c", LIMITED, str(soft), str(hard))


def request(path, *headers, version="1.1"):
    return ("\r\n".join([f"GET {path} HTTP/{version}", "Host: mirror", *headers]) + "\r\n\r\n").encode()


# --- bytes behind a request that is the last one ---


CLOSE = request("/v2/", "Connection: close")
H2C = request("/v2/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQ")


@pytest.mark.parametrize(
    ("pieces", "responses"),
    [
        pytest.param([CLOSE + request(TAG)], 1, id="a request behind the last one"),
        pytest.param([CLOSE + b"junk"], 1, id="junk behind the last one"),
        pytest.param([CLOSE[:-1], CLOSE[-1:] + request(TAG)], 1, id="in two pieces"),
        pytest.param([request("/v2/", version="1.0") + request(TAG)], 1, id="HTTP/1.0"),
        pytest.param([request("/v2/") * 2 + CLOSE + b"junk"], 3, id="pipelined before"),
        pytest.param([request("/v2/", "Content-Length: 0", "Connection: close") + CLOSE], 1, id="no length"),
        pytest.param([H2C + CLOSE], 2, id="behind an upgrade"),
        pytest.param([H2C + request("/v2/") + CLOSE], 3, id="two behind an upgrade"),
    ],
)
async def test_each_request_until_the_last_one_gets_its_response(mirror, pieces, responses):
    """B57: what follows a request that ends the connection is ignored; an upgrade is declined."""
    reader, writer = await asyncio.open_connection("127.0.0.1", mirror.port)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(0.05 if len(pieces) > 1 else 0)
    async with asyncio.timeout(10):
        received = await reader.read()
    writer.close()
    assert received.count(b"HTTP/1.") == received.count(b" 200 OK\r\n") == responses
