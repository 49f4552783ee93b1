"""Goals: the rows of the result table, each with bounds that must hold and bounds to aim at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.experiments import Growth
from benchmarks.rounds import Measured
from benchmarks.servers import DIRECT, DOCKER_REGISTRY, NGINX, NGINX_CACHE
from benchmarks.stats import Spread, ratios

_TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Goal:
    """A bound for a figure, or for its ratio to the figure of ``peer``."""

    bound: float
    peer: str = ""

    def text(self, *, is_less_better: bool, unit: str) -> str:
        sign = "≤" if is_less_better else "≥"
        return f"{sign} {self.bound:g} {f'{_TIMES} {self.peer}' if self.peer else unit}".strip()


@dataclass(frozen=True)
class Verdict:
    """Result of comparing a program with a goal."""

    goal: Goal
    spread: Spread
    is_reached: bool


@dataclass(frozen=True)
class Row:
    """One figure. ``subject``, if set, is judged instead of the programs under test."""

    figure: str
    title: str
    unit: str
    hold: Sequence[Goal] = ()
    aim: Sequence[Goal] = ()
    is_less_better: bool = False
    subject: str = ""

    def judge(self, goal: Goal, measured: Measured, subject: str) -> Verdict | None:
        """Compare the median with the goal; None if the subject or the peer was not measured."""
        servers = measured.get(self.figure, {})
        values, others = servers.get(subject), servers.get(goal.peer)
        if values is None or (goal.peer and others is None):
            return None
        spread = Spread.of(ratios(values, others) if others is not None else values)
        reached = spread.median <= goal.bound if self.is_less_better else spread.median >= goal.bound
        return Verdict(goal, spread, reached)


def _registry(bound: float) -> tuple[Goal]:
    return (Goal(bound, DOCKER_REGISTRY),)


def _nginx(bound: float) -> tuple[Goal]:
    return (Goal(bound, NGINX),)


def _flat(figure: str, title: str) -> Row:
    """A latency that must not depend on the number of stored blobs."""
    least, *_, most = map(Growth.server_name, Growth.stores)
    return Row(figure, f"{title}, {most}", "µs", (Goal(1.1, least),), is_less_better=True, subject=most)


_MORE: Sequence[Row] = (
    Row("warm-blob-1", "warm blob, 1 client", "GB/s", _registry(3), _nginx(0.95)),
    Row("warm-blob-8", "warm blob, 8 clients", "GB/s", _registry(3), _nginx(0.95)),
    Row("warm-blob-64", "warm blob, 64 clients", "GB/s", _registry(3), _nginx(0.95)),
    Row("small-blob", "warm blob of 70 KiB, 32 connections", "1/s", _registry(15), _nginx(0.5)),
    Row("manifest-digest", "warm manifest by digest, 32 connections", "1/s", _registry(15), _nginx(0.5)),
    Row("manifest-tag", "warm manifest by tag, 32 connections", "1/s", _registry(60), _nginx(0.5)),
    Row("cold-blob", "cold blob, 1 client", "GB/s", _registry(1.2), (Goal(1.0, NGINX_CACHE),)),
    Row("cold-blob-https", "cold blob over https, 1 client", "GB/s", _registry(1.0)),
    Row("cold-blob-32", "cold blob, 32 clients", "GB/s", _registry(4), (Goal(0.85, DIRECT),)),
    Row("image-cold", "image of 8 layers, cold, 16 clients", "GB/s", _registry(3)),
    Row("image-warm", "image of 8 layers, warm, 16 clients", "GB/s", _registry(3)),
    Row("tls1.2-blob-1", "warm blob by TLS 1.2, 1 client", "GB/s"),
    Row("tls1.2-blob-8", "warm blob by TLS 1.2, 8 clients", "GB/s", _registry(1.2), _nginx(1.2)),
    Row("tls1.3-blob-8", "warm blob by TLS 1.3, 8 clients", "GB/s", _registry(1.2), _nginx(1.2)),
    Row("isolation-manifests", "manifests while 8 clients stream", "1/s"),
    Row("isolation-blobs", "blobs to those 8 clients", "GB/s"),
)

_LESS: Sequence[Row] = (
    Row("warm-blob-8-cpu", "CPU of a warm blob, 8 clients", "s/GiB", _registry(0.3)),
    Row("cold-blob-cpu", "CPU of a cold blob", "s/GiB", _registry(0.4)),
    Row("cold-blob-https-cpu", "CPU of a cold blob over https", "s/GiB"),
    Row("cold-blob-32-bytes", "upstream bytes in blobs, 32 clients", "", (Goal(1.01),)),
    Row("cold-blob-32-requests", "upstream requests, 32 clients", ""),
    Row("cold-blob-32-first-byte", "first byte of a cold blob, p99 of 32", "ms", (Goal(20),)),
    Row("isolation-p99", "manifest while 8 clients stream, p99", "ms", (Goal(10), Goal(2, NGINX)), _nginx(1)),
    Row("start", "start to ready", "s", (Goal(1.5),)),
    Row("memory-idle", "resident memory of a worker, idle", "MB", (Goal(80),)),
    Row("memory-slow", "resident memory of a worker, 100 slow readers", "MB", (Goal(100),)),
)

ROWS: Sequence[Row] = (
    *_MORE,
    *(replace(row, is_less_better=True) for row in _LESS),
    _flat("growth-manifest", "warm manifest"),
    _flat("growth-blob", "warm blob of 1 KB"),
)
