"""Metrics count events; with several workers, in files that all of them share."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest

from regmirror.telemetry import events, metrics
from regmirror.telemetry.metrics import Metrics


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Metrics:
    """Metrics beside the empty file of a worker that is starting."""
    made = Metrics(["registry.test"], 0)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    (tmp_path / "counter_1.db").touch()
    return made


def test_a_scrape_waits_until_a_new_worker_has_its_file(
    counted: Metrics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B78: a scrape waits instead of failing, and so does the start of another worker."""
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        (tmp_path / "counter_1.db").write_bytes(bytes(1024))

    monkeypatch.setattr(time, "sleep", pause)
    assert counted.render() == b""
    assert len(pauses) == 1
    counted.follow_config(["registry.test", "other.test"], 0)
    assert len(pauses) == 1


def test_a_file_that_stays_empty_is_a_failure_in_the_end(
    counted: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(struct.error):
        counted.render()
    assert len(pauses) == metrics.READS - 1


def test_events_are_counted_by_upstream_kind_and_result() -> None:
    counted = Metrics(["registry.test"], 5)
    counted(events.UpstreamRequestEnded("registry.test", "blob", "GET", "/", 0, 1.0, "reset"))
    counted(events.TokenRequested("registry.test", 0))
    counted(events.RateLimitSeen("registry.test", 100, 7))
    counted(events.BytesFetched("registry.test", "blob", 11))
    counted(events.VerificationFailed("", "blob", "sha256:x", "store"))
    counted(events.BlobRemoved("sha256:x", 13, "corrupt"))
    counted(events.BlobRepaired("registry.test", "sha256:x"))
    counted(events.NotStored("disk", "full"))
    counted(events.MaintenanceEnded("scrub", 1, 0, 0, 1.0))
    lines = counted.render().decode().splitlines()
    for line in (
        'regmirror_upstream_requests_total{kind="blob",status="error",upstream="registry.test"} 1.0',
        'regmirror_token_requests_total{status="error",upstream="registry.test"} 1.0',
        'regmirror_upstream_ratelimit_remaining{upstream="registry.test"} 7.0',
        'regmirror_upstream_up{upstream="registry.test"} 0.0',
        'regmirror_fetched_bytes_total{kind="blob",upstream="registry.test"} 11.0',
        'regmirror_verification_failures_total{kind="blob",upstream="unknown"} 1.0',
        'regmirror_removed_bytes_total{reason="corrupt"} 13.0',
        "regmirror_healed_total 1.0",
        'regmirror_uncached_total{reason="disk"} 1.0',
        "regmirror_store_max_bytes 5.0",
    ):
        assert line in lines


def test_an_upstream_that_is_no_longer_configured_raises_no_alert() -> None:
    counted = Metrics(["registry.test"], 0)
    counted(events.CircuitChanged("registry.test", is_open=True))
    assert b'upstream_up{upstream="registry.test"} 0.0' in counted.render()
    counted.follow_config([], 0)
    assert b'upstream_up{upstream="registry.test"} 1.0' in counted.render()
