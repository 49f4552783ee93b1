"""The status is computed from the metrics of the server."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from regmirror.blobs.staging import Staging
from regmirror.cli import status
from regmirror.cli.output import Table
from regmirror.config.schema import Config


def test_the_hit_ratio_counts_requests_that_fetched_nothing() -> None:
    samples = status.parse_metrics(
        'regmirror_build_info{version="9"} 1\n'
        'regmirror_requests_total{upstream="docker.io",kind="blob",result="hit"} 5\n'
        'regmirror_requests_total{upstream="docker.io",kind="manifest",result="stale"} 1\n'
        'regmirror_requests_total{upstream="docker.io",kind="manifest",result="miss"} 2\n'
        'regmirror_requests_total{upstream="docker.io",kind="manifest",result="error"} 7\n'
        'regmirror_upstream_up{upstream="docker.io"} 0\n'
        'regmirror_upstream_requests_total{upstream="docker.io",kind="manifest",status="503"} 3\n'
        'regmirror_upstream_requests_total{upstream="docker.io",kind="manifest",status="404"} 2\n'
        'regmirror_upstream_ratelimit_limit{upstream="docker.io"} 100\n'
        'regmirror_upstream_ratelimit_remaining{upstream="docker.io"} 0\n'
        'regmirror_upstream_up{upstream="quay.io"} 1\n'
    )
    server = status._server("http://127.0.0.1:5000/metrics", Config(), samples)
    assert server["hit_ratio"] == 0.75
    assert server["requests"] == 15
    hub, quay = (
        next(item for item in server["upstreams"] if item["name"] == name)
        for name in ("docker.io", "quay.io")
    )
    assert (hub["state"], hub["requests"], hub["errors"]) == ("failing", 5, 3)
    assert (hub["limit"], hub["limit_remaining"]) == (100, 0)
    assert (quay["state"], quay["limit"]) == ("not asked yet", None)


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("0.0.0.0:5000", "http://127.0.0.1:5000/metrics"),
        ("[::]:5000", "http://[::1]:5000/metrics"),
        ("10.1.2.3:80", "http://10.1.2.3:80/metrics"),
    ],
)
def test_metrics_are_read_from_the_address_of_the_server(listen: str, url: str) -> None:
    assert status.metrics_url(Config.model_validate({"server": {"listen": listen}})) == url


def test_other_formats_are_not_metrics() -> None:
    with pytest.raises(ValueError, match=r"html"):
        status.parse_metrics("<html>")


def report(**changes: object) -> dict[str, object]:
    store = {
        "path": "/data",
        "size": 1,
        "manifest_bytes": 2,
        "max_size": 0,
        "free": 5,
        "repositories": 1,
        "tags": 2,
    }
    store |= {"manifests": 3, "blobs": 4}
    return {"store": store, "downloads": [], "server": None} | changes


def test_without_a_server_only_the_store_is_shown() -> None:
    (text,) = status._parts(report(downloads=None), "http://h:1/metrics")
    assert isinstance(text, str)
    assert "3 Bytes of unlimited" in text
    assert "1 repository, 2 tags, 3 manifests, 4 blobs" in text
    assert "unknown: no permission to read staging" in text
    assert "not running at http://h:1" in text


def test_a_new_server_has_no_hit_ratio() -> None:
    samples = status.parse_metrics('regmirror_build_info{version="9"} 1\n')
    server = status._server("http://h:1/metrics", Config(), samples)
    assert server["hit_ratio"] is None
    text = status._parts(report(server=server), "http://h:1/metrics")[0]
    assert isinstance(text, str)
    assert "none yet" in text


@pytest.mark.parametrize(
    ("count", "text"), [(1, "of 1 successful request\n"), (2, "of 2 successful requests\n")]
)
def test_one_request_is_singular(count: int, text: str) -> None:
    samples = status.parse_metrics(
        'regmirror_build_info{version="9"} 1\n'
        f'regmirror_requests_total{{upstream="docker.io",kind="blob",result="hit"}} {count}\n'
    )
    server = status._server("http://h:1/metrics", Config(), samples)
    shown = status._parts(report(server=server), "http://h:1/metrics")[0]
    assert isinstance(shown, str)
    assert text in f"{shown}\n"


def test_downloads_in_flight_are_a_table() -> None:
    download = {"digest": "sha256:a", "received": 1_000_000, "size": None}
    table = status._parts(report(downloads=[download]), "http://h:1/metrics")[1]
    assert isinstance(table, Table)
    assert table.rows == [("sha256:a", "1.0 MB", "-")]


def test_without_a_staging_directory_nothing_is_in_flight(tmp_path: Path) -> None:
    assert status._downloads(tmp_path) == []


def serve_once(body: bytes) -> tuple[str, threading.Thread]:
    """A server on a free port that sends ``body`` to one client; its URL and thread."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with server, server.accept()[0] as connection:
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body)

    thread = threading.Thread(target=serve)
    thread.start()
    return f"http://127.0.0.1:{server.getsockname()[1]}/metrics", thread


@pytest.mark.parametrize(
    ("body", "is_regmirror"),
    [(b'regmirror_build_info{version="9"} 1\n', True), (b"other 1\n", False), (b"<html>", False)],
)
def test_only_metrics_of_regmirror_are_accepted(body: bytes, is_regmirror: bool) -> None:
    url, thread = serve_once(body)
    assert (status.fetch_metrics(url) is not None) is is_regmirror
    thread.join(5)


def test_a_staging_directory_without_permission_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(staging: Staging) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Staging, "in_flight", fail)
    assert status._downloads(tmp_path) is None
