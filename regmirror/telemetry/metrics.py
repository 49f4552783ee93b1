"""Metrics in the text format of Prometheus: a listener to events.

Every time series exists from the start, at 0, so that rates and alerts need no special cases.
Label values come from the configuration, never from clients. With several workers,
prometheus-client keeps the values in files that all workers share
(``PROMETHEUS_MULTIPROC_DIR``, set before this module is imported).
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from regmirror import __version__
from regmirror.telemetry import events
from regmirror.telemetry.events import KINDS, RESULTS, Event

UNKNOWN: Final = "unknown"  # the upstream of requests that name no configured upstream
REASONS: Final = ("unreferenced", "evicted", "purged", "corrupt")
UNCACHED: Final = ("database", "disk", "quota", "stalled")
STATUSES: Final = ("200", "404", "429", "error")  # created at the start; others at their first response
READS: Final = 20  # attempts to read the files of all workers
READ_PAUSE: Final = 0.005  # seconds between two attempts; blocks the event loop while a worker starts
SECONDS: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 1, 2, 5, 15, 60, 300)

T = TypeVar("T")
Lookups = Callable[[], dict[str, tuple[int, int]]]  # hits and misses by the name of an in-memory cache


class Metrics:
    """Counts events; ``render`` returns the metrics of all workers."""

    def __init__(self, upstreams: Iterable[str], max_bytes: int) -> None:
        self._registry = CollectorRegistry()
        self._handlers: dict[type, Callable[[Any], None]] = {
            events.RequestServed: self._request_served,
            events.UpstreamRequestEnded: self._upstream_request_ended,
            events.TokenRequested: self._token_requested,
            events.RateLimitSeen: self._rate_limit_seen,
            events.BytesFetched: self._bytes_fetched,
            events.DownloadStarted: lambda event: self._in_flight.inc(),
            events.DownloadEnded: lambda event: self._in_flight.dec(),
            events.FollowersChanged: lambda event: self._followers.inc(event.delta),
            events.VerificationFailed: self._verification_failed,
            events.BlobRemoved: self._blob_removed,
            events.NotStored: self._not_stored,
            events.CircuitChanged: self._circuit_changed,
            events.BlobRepaired: lambda event: self._healed.inc(),
        }
        self._define_clients()
        self._define_upstreams()
        self._define_store()
        self._request_children: dict[tuple[str, str, str], Counter] = {}
        self._sent_children: dict[tuple[str, str], Counter] = {}
        self._lookups: Lookups = dict
        self._upstreams: set[str] = set()  # upstreams of the effective configuration
        self._create_children()
        self._create_upstream(UNKNOWN)
        self.follow_config(upstreams, max_bytes)

    def __call__(self, event: Event) -> None:
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def follow_config(self, upstreams: Iterable[str], max_bytes: int) -> None:
        """Take over a new configuration: new upstreams begin at 0, existing counts stay."""
        self._max_bytes.set(max_bytes)
        target = {*upstreams}
        for upstream in self._upstreams - target:
            self._up.labels(upstream).set(1)  # no longer configured, so no alert may remain
        existing = _find_existing_gauges() if target - self._upstreams else set()
        for upstream in target - self._upstreams:
            self._create_upstream(upstream)
            self._create_upstream_requests(upstream, existing)
        self._upstreams = target

    def set_store(self, blobs: int, blob_bytes: int, manifests: int) -> None:
        """Set the current number of blobs, their bytes, and the number of manifests."""
        self._blobs.set(blobs)
        self._bytes.set(blob_bytes)
        self._manifests.set(manifests)

    def follow_memories(self, lookups: Lookups) -> None:
        """Report the hits and misses of this worker's in-memory caches."""
        self._lookups = lookups
        self.refresh()

    def refresh(self) -> None:
        """Copy the counts of the in-memory caches, so that any worker can render them."""
        for memory, counts in self._lookups().items():
            for result, count in zip(("hit", "miss"), counts, strict=True):
                self._memory.labels(memory, result).set(count)

    def render(self) -> bytes:
        """The metrics of all workers in the text format."""
        self.refresh()
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # the library's is untyped
        return _read_with_retries(lambda: generate_latest(registry))

    # --- definitions ---------------------------------------------------------------------

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"regmirror_{name}", text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str, mode: Any = "mostrecent") -> Gauge:
        return Gauge(f"regmirror_{name}", text, labels, registry=self._registry, multiprocess_mode=mode)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(f"regmirror_{name}", text, labels, registry=self._registry, buckets=SECONDS)

    def _define_clients(self) -> None:
        self._requests = self._counter("requests_total", "Client requests.", "upstream", "kind", "result")
        self._seconds = self._histogram(
            "request_seconds",
            "Time from the arrival of a client request to the last byte of its response.",
            "kind",
        )
        self._first_byte = self._histogram(
            "first_byte_seconds",
            "Time from the arrival of a client request to the headers of its response.",
            "kind",
            "result",
        )
        self._sent = self._counter("sent_bytes_total", "Content bytes sent to clients.", "upstream", "kind")

    def _define_upstreams(self) -> None:
        self._fetched = self._counter(
            "fetched_bytes_total", "Content bytes received from upstreams.", "upstream", "kind"
        )
        self._upstream_requests = self._counter(
            "upstream_requests_total", "Requests to upstreams.", "upstream", "kind", "status"
        )
        self._upstream_seconds = self._histogram(
            "upstream_seconds",
            "Time from sending an upstream request to the headers of its response.",
            "upstream",
            "kind",
        )
        self._up = self._gauge(
            "upstream_up", "Whether the last request to the upstream succeeded (1) or failed (0).", "upstream"
        )
        self._remaining = self._gauge(
            "upstream_ratelimit_remaining",
            "Pulls that the upstream still allows in the current window.",
            "upstream",
        )
        self._limit = self._gauge(
            "upstream_ratelimit_limit", "Pulls that the upstream allows in one window.", "upstream"
        )
        self._tokens = self._counter(
            "token_requests_total", "Requests to token endpoints.", "upstream", "status"
        )

    def _define_store(self) -> None:
        self._in_flight = self._gauge(
            "downloads_in_flight",
            "Blobs being downloaded, or followed while another worker downloads them.",
            mode="livesum",
        )
        self._followers = self._gauge(
            "download_followers", "Clients that are reading a blob in flight.", mode="livesum"
        )
        self._bytes = self._gauge("store_bytes", "Bytes of stored blobs and manifests.")
        self._blobs = self._gauge("store_blobs", "Stored blobs.")
        self._manifests = self._gauge("store_manifests", "Stored manifests.")
        self._max_bytes = self._gauge(
            "store_max_bytes", "Configured limit of stored bytes; 0 means unlimited."
        )
        self._removed = self._counter("removed_total", "Blobs removed from the store.", "reason")
        self._removed_bytes = self._counter("removed_bytes_total", "Bytes removed from the store.", "reason")
        self._failures = self._counter(
            "verification_failures_total",
            "Manifests and blobs that did not match their digest.",
            "upstream",
            "kind",
        )
        self._healed = self._counter("healed_total", "Corrupt blobs that were replaced by a new download.")
        self._uncached = self._counter(
            "uncached_total", "Responses sent without storing the content, by reason.", "reason"
        )
        self._memory = self._gauge(
            "memory_lookups",
            "Lookups in the in-memory caches of a worker.",
            "memory",
            "result",
            mode="liveall",
        )
        info = self._gauge("build_info", "Version of regmirror.", "version")
        info.labels(__version__).set(1)

    def _create_children(self) -> None:
        """Create series at 0; those of the hot path are stored here, since a lookup is slow."""
        self._seconds_children = {kind: self._seconds.labels(kind) for kind in KINDS}
        self._first_byte_children = {
            (kind, result): self._first_byte.labels(kind, result) for kind in KINDS for result in RESULTS
        }
        for reason in REASONS:
            self._removed.labels(reason)
            self._removed_bytes.labels(reason)
        for reason in UNCACHED:
            self._uncached.labels(reason)

    def _create_upstream(self, upstream: str) -> None:
        """The series of client requests for an upstream."""
        for kind in KINDS:
            self._failures.labels(upstream, kind)
            self._sent_children[upstream, kind] = self._sent.labels(upstream, kind)
            for result in RESULTS:
                child = self._requests.labels(upstream, kind, result)
                self._request_children[upstream, kind, result] = child

    def _create_upstream_requests(self, upstream: str, existing: set[tuple[str, str]]) -> None:
        """The series of requests to an upstream; gauges that another worker has set keep their value."""
        for kind in KINDS:
            self._fetched.labels(upstream, kind)
            self._upstream_seconds.labels(upstream, kind)
            for status in STATUSES:
                self._upstream_requests.labels(upstream, kind, status)
        # With several workers the library reports only gauges that a worker has set.
        gauges = {"up": (self._up, 1), "ratelimit_remaining": (self._remaining, 0)}
        gauges["ratelimit_limit"] = (self._limit, 0)
        for name, (gauge, value) in gauges.items():
            if (f"regmirror_upstream_{name}", upstream) not in existing:
                gauge.labels(upstream).set(value)
        for status in ("200", "401", "error"):
            self._tokens.labels(upstream, status)

    # --- events --------------------------------------------------------------------------

    def _request_served(self, event: events.RequestServed) -> None:
        if not event.kind:
            return
        self._request_children[event.upstream, event.kind, event.result].inc()
        self._seconds_children[event.kind].observe(event.seconds)
        self._first_byte_children[event.kind, event.result].observe(event.first_byte)
        self._sent_children[event.upstream, event.kind].inc(event.sent_bytes)

    def _upstream_request_ended(self, event: events.UpstreamRequestEnded) -> None:
        status = str(event.status) if event.status else "error"
        self._upstream_requests.labels(event.upstream, event.kind, status).inc()
        self._upstream_seconds.labels(event.upstream, event.kind).observe(event.seconds)
        self._up.labels(event.upstream).set(1 if 0 < event.status < 500 else 0)

    def _token_requested(self, event: events.TokenRequested) -> None:
        status = str(event.status) if event.status else "error"
        self._tokens.labels(event.upstream, status).inc()

    def _rate_limit_seen(self, event: events.RateLimitSeen) -> None:
        self._limit.labels(event.upstream).set(event.limit)
        self._remaining.labels(event.upstream).set(event.remaining)

    def _circuit_changed(self, event: events.CircuitChanged) -> None:
        self._up.labels(event.upstream).set(0 if event.is_open else 1)

    def _bytes_fetched(self, event: events.BytesFetched) -> None:
        self._fetched.labels(event.upstream, event.kind).inc(event.count)

    def _verification_failed(self, event: events.VerificationFailed) -> None:
        self._failures.labels(event.upstream or UNKNOWN, event.kind).inc()

    def _blob_removed(self, event: events.BlobRemoved) -> None:
        self._removed.labels(event.reason).inc()
        self._removed_bytes.labels(event.reason).inc(event.size)

    def _not_stored(self, event: events.NotStored) -> None:
        self._uncached.labels(event.reason).inc()


def _find_existing_gauges() -> set[tuple[str, str]]:
    """The gauges of upstreams that a worker has set; a worker that replaces it must not reset them."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return set()
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # the library's is untyped
    gauges = _read_with_retries(lambda: [metric for metric in registry.collect() if metric.type == "gauge"])
    return {
        (sample.name, sample.labels["upstream"])
        for metric in gauges
        for sample in metric.samples
        if "upstream" in sample.labels
    }


def _read_with_retries(read: Callable[[], T]) -> T:
    """Read the files of all workers; retry while a starting worker has a file that is still empty."""
    for _ in range(READS - 1):
        try:
            return read()
        except struct.error:
            time.sleep(READ_PAUSE)
    return read()
