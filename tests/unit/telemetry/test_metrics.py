"""The files in which several workers count, while one of them is about to make its own."""

from __future__ import annotations

import struct

import pytest

from regmirror.telemetry import metrics
from regmirror.telemetry.metrics import Metrics


@pytest.fixture
def figures(tmp_path, monkeypatch):
    """Figures beside a file that another worker has opened, and has not yet given a size."""
    made = Metrics(["registry.test"], 0)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    (tmp_path / "counter_1.db").touch()
    return made


def test_a_scrape_waits_until_a_new_worker_has_its_file(figures, tmp_path, monkeypatch):
    """B78: instead of failing; so does the start of yet another worker."""
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        (tmp_path / "counter_1.db").write_bytes(bytes(1024))

    monkeypatch.setattr(metrics.time, "sleep", pause)
    assert figures.render() == b""
    assert len(pauses) == 1
    figures.follow_config(["registry.test", "other.test"], 0)
    assert len(pauses) == 1


def test_a_file_that_stays_empty_is_a_failure_in_the_end(figures, monkeypatch):
    pauses = []
    monkeypatch.setattr(metrics.time, "sleep", pauses.append)
    with pytest.raises(struct.error):
        figures.render()
    assert len(pauses) == metrics.READS - 1
