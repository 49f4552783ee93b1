"""Processes and signals: from a configuration to a serving port, and from there to a good end.

One worker runs in this process. Several are forked from it, each with its own listening
socket on the one port (``SO_REUSEPORT``); this process then only watches: it passes signals on
and replaces a worker that died. It holds no state, and keeps the sockets open, so that
connections to a worker that is being replaced wait instead of failing.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from regmirror import __version__
from regmirror.config.diff import plan_changes
from regmirror.config.loader import take_snapshot
from regmirror.server.listener import Certificate, bind, load_tls, url_of
from regmirror.server.reload import Read, keeping_the_old, log_reloaded, say, say_reloaded
from regmirror.server.signals import Signals
from regmirror.telemetry import logs

if TYPE_CHECKING:
    from regmirror.config.schema import Config
    from regmirror.server.app import Worker

RESPAWN_PAUSE: Final = 1.0  # seconds between replacements, should workers die at once
BREAKING: Final = 0.1  # seconds for connections that are still open after the drain


def serve(read: Read) -> int:
    """Serve by the configuration that ``read`` reads, until SIGTERM or SIGINT; the exit status.

    SIGHUP reads it again. Raises ConfigError before serving. Whoever calls ends soon: the
    signals are ignored from then on.
    """
    signals = Signals(signal.SIGHUP)  # before the first reading, so that no change is missed
    try:
        config = read()
        logs.configure()
        return _serve(config, read, signals)
    finally:
        signals.close()


def _serve(config: Config, read: Read, signals: Signals) -> int:
    certificate = Certificate.load(config)
    count = config.server.workers or os.cpu_count() or 1
    if count > 1:
        # prometheus-client looks for this when it is imported, so it is set before ``app`` is.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="regmirror-metrics-")
    from regmirror.server.app import prepare
    from regmirror.server.acceptor import raise_descriptor_limit

    raise_descriptor_limit()
    sockets = bind(config.server.listen, count)
    try:
        prepare(config)
        url = url_of(sockets[0], is_secure=certificate is not None)
        start = _Start(config, read, signals, certificate)
        if count == 1:
            return asyncio.run(_serve_worker(start, sockets[0], lambda: _say_ready(url, 1)))
        return _Parent(start, sockets, url).run()
    finally:
        for sock in sockets:
            sock.close()
        if count > 1:
            shutil.rmtree(os.environ.pop("PROMETHEUS_MULTIPROC_DIR"), ignore_errors=True)


def _say_ready(url: str, workers: int) -> None:
    more = f" with {workers} workers" if workers > 1 else ""
    sys.stdout.write(f"regmirror {__version__} serves {url}{more}\n")
    sys.stdout.flush()


@dataclass(frozen=True)
class _Start:
    """What a worker begins with. ``speaks``: it is alone, so it talks to people itself."""

    config: Config
    read: Read
    signals: Signals
    certificate: Certificate | None
    speaks: bool = True


@dataclass
class _Wishes:
    """What signals want of a worker. Many of a kind are one."""

    stop: asyncio.Event = field(default_factory=asyncio.Event)
    reload: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, numbers: set[int]) -> None:
        if signal.SIGHUP in numbers:
            self.reload.set()
        if numbers & {signal.SIGTERM, signal.SIGINT}:
            self.stop.set()


async def _serve_worker(
    start: _Start, sock: socket.socket, ready: Callable[[], None], life: int | None = None
) -> int:
    """Serve on ``sock`` until told to stop, then let what is in flight end.

    The end of the pipe ``life`` is such a sign as well.
    """
    from regmirror.server.app import WORKER, create_app
    from regmirror.v2.connection import Runner

    wishes, signals = _Wishes(), start.signals
    loop = asyncio.get_running_loop()
    signals.take(signal.SIGTERM, signal.SIGINT)
    loop.add_reader(signals.fileno(), lambda: wishes.take(signals.read()))
    if life is not None:
        loop.add_reader(life, _end_with, loop, life, wishes.stop)
    app = create_app(start.config)
    runner = Runner(
        app,
        access_log=None,
        shutdown_timeout=BREAKING,
        keepalive_timeout=150.0,  # longer than clients keep idle connections
        max_field_size=65_536,  # podman asks for up to 1024 ranges in one header
        max_line_size=16_384,
    )
    await runner.setup()
    running, certificate = app[WORKER], start.certificate
    tasks = [asyncio.create_task(_follow_reloads(start, wishes, running))]
    if certificate:
        tasks.append(asyncio.create_task(certificate.watch()))
    try:
        tls = certificate.context if certificate else None
        await runner.listen(sock, tls)
        # What is there by now stays, so that no collection has to look at it again.
        gc.freeze()
        ready()
        await wishes.stop.wait()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await runner.drain(running.config.server.drain_timeout)
        await runner.cleanup()
        loop.remove_reader(signals.fileno())
    return 0


def _end_with(loop: asyncio.AbstractEventLoop, life: int, stop: asyncio.Event) -> None:
    loop.remove_reader(life)
    stop.set()


async def _follow_reloads(start: _Start, wishes: _Wishes, running: Worker) -> None:
    """One reload after the other; those asked for during one are one more."""
    while True:
        await wishes.reload.wait()
        wishes.reload.clear()
        with keeping_the_old():
            config = await asyncio.to_thread(start.read)
            load_tls(config.server.tls)  # judged before anything changes
            changes = await running.reload(config)
            if start.certificate:
                start.certificate.renew(running.config.server.tls)
            log_reloaded(changes)
            if start.speaks:
                say_reloaded(changes)


class _Parent:
    """The process that watches the workers.

    Two pipes lead to them: through ``ready`` each says that it serves; ``life`` ends when this
    process does, however it ends, and workers stop then instead of holding the port.
    """

    def __init__(self, start: _Start, sockets: list[socket.socket], url: str) -> None:
        self._begin, self._sockets, self._url = replace(start, speaks=False), sockets, url
        self._snapshot = take_snapshot(start.config)
        self._signals = start.signals
        self._ready, self._life = os.pipe(), os.pipe()
        os.set_blocking(self._ready[0], False)
        self._workers: dict[int, int] = {}  # process id to place
        self._started_at = [0.0] * len(sockets)
        self._stopping = False

    def run(self) -> int:
        self._signals.take(signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
        gc.freeze()  # a collection would write to the pages that the workers share with this process
        for place in range(len(self._sockets)):
            self._start(place)
        is_ready = self._all_are_ready()
        if not is_ready:
            self._stop()
        elif not self._stopping:
            _say_ready(self._url, len(self._sockets))
        while self._workers:
            self._obey(self._signals.wait())
            for pid, status, place in self._reap():
                say(f"worker {pid} ended with {status}; starting another")
                self._replace(pid, place)
        return 0 if is_ready else 1

    def _all_are_ready(self) -> bool:
        """Wait until every worker serves; false if one ended instead."""
        said = 0
        while said < len(self._sockets) and not self._stopping:
            self._obey(self._signals.wait(self._ready[0]))
            with suppress(BlockingIOError):
                said += len(os.read(self._ready[0], len(self._sockets)))
            if self._reap():
                return False
        return True

    def _obey(self, numbers: set[int]) -> None:
        if numbers & {signal.SIGTERM, signal.SIGINT}:
            self._stop()
        if signal.SIGHUP in numbers and not self._stopping:
            self._reload()

    def _start(self, place: int) -> None:
        self._started_at[place] = time.monotonic()
        pid = self._signals.fork(signal.SIGHUP)
        if pid:
            self._workers[pid] = place
            return
        status = 1
        try:
            self._keep_only(place)
            status = asyncio.run(
                _serve_worker(self._begin, self._sockets[place], self._say_ready, self._life[0])
            )
        finally:
            os._exit(status)  # the clean-up is the parent's

    def _keep_only(self, place: int) -> None:
        """In the child: a socket that another worker closes must not stay open here."""
        os.close(self._life[1])
        for number, sock in enumerate(self._sockets):
            if number != place:
                sock.close()

    def _say_ready(self) -> None:
        os.write(self._ready[1], b".")

    def _reap(self) -> list[tuple[int, int, int]]:
        """Workers that have ended without being told to: process id, status, place."""
        ended = []
        with suppress(ChildProcessError):  # the last one has ended
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                place = self._workers.pop(found[0], None)
                if place is not None and not self._stopping:
                    ended.append((*found, place))
        return ended

    def _replace(self, pid: int, place: int) -> None:
        _forget_gauges(pid)
        if time.monotonic() - self._started_at[place] < RESPAWN_PAUSE:
            time.sleep(RESPAWN_PAUSE)
        self._start(place)

    def _reload(self) -> None:
        """Judge the new configuration here, so that the workers all take it or all keep the old."""
        from regmirror.server.app import check_upstreams

        with keeping_the_old():
            config = self._begin.read()
            load_tls(config.server.tls)
            check_upstreams(config)
            changes = plan_changes(self._snapshot, take_snapshot(config))
            self._snapshot = changes.target
            self._begin = replace(self._begin, config=changes.target.config)
            if self._begin.certificate:
                self._begin.certificate.renew(changes.target.config.server.tls)
            say_reloaded(changes)
            self._tell(signal.SIGHUP)

    def _stop(self) -> None:
        """Workers drain; connections that come now are refused instead of waiting for nobody."""
        self._stopping = True
        for sock in self._sockets:
            sock.close()
        self._tell(signal.SIGTERM)

    def _tell(self, number: int) -> None:
        for pid in list(self._workers):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def _forget_gauges(pid: int) -> None:
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(pid)  # type: ignore[no-untyped-call]
