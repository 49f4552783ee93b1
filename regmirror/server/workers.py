"""Worker processes: bind, fork, supervise, reload, drain.

One worker runs in this process. Several are forked from it, each with its own listening socket on
the one port (``SO_REUSEPORT``); this process then only supervises them: it forwards signals and
replaces a worker that ended. It stores nothing, and keeps the sockets open, so that connections to
a worker that is being replaced wait instead of failing.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from regmirror.config.diff import plan_changes
from regmirror.config.loader import take_snapshot
from regmirror.server.console import (
    log_changes,
    print_changes,
    print_line,
    print_ready,
    reporting_failed_reload,
)
from regmirror.server.listener import Certificate, bind, load_tls, url_of
from regmirror.server.signals import Signals
from regmirror.telemetry import logs

if TYPE_CHECKING:
    from regmirror.config.schema import Config
    from regmirror.server.worker import Worker

RESPAWN_PAUSE: Final = 1.0  # seconds between two starts of a worker that ends at once
#: Reads the configuration as at the start: from the same file, environment and command line.
ReadConfig = Callable[[], "Config"]


def serve(read: ReadConfig) -> int:
    """Serve by the configuration that ``read`` returns, until SIGTERM or SIGINT; the exit status.

    SIGHUP reads it again. Raises ConfigError before serving. Afterwards the process ignores these
    signals, and should end soon.
    """
    signals = Signals(signal.SIGHUP)  # before the first reading, so that no change is missed
    try:
        config = read()
        logs.configure()
        return _serve(config, read, signals)
    finally:
        signals.close()


def _serve(config: Config, read: ReadConfig, signals: Signals) -> int:
    certificate = Certificate.load(config)
    count = config.server.workers or os.cpu_count() or 1
    if count > 1:
        # prometheus-client reads this when it is imported, so it is set before ``app`` is imported.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="regmirror-metrics-")
    from regmirror.server.acceptor import raise_descriptor_limit
    from regmirror.server.app import prepare

    raise_descriptor_limit()
    sockets = bind(config.server.listen, count)
    try:
        prepare(config)
        url = url_of(sockets[0], is_secure=certificate is not None)
        start = _Start(
            config=config, read=read, signals=signals, certificate=certificate, is_alone=count == 1
        )
        if start.is_alone:
            return asyncio.run(_run_worker(start, sockets[0], lambda: print_ready(url, 1)))
        return _Supervisor(start, sockets, url).run()
    finally:
        for sock in sockets:
            sock.close()
        if count > 1:
            shutil.rmtree(os.environ.pop("PROMETHEUS_MULTIPROC_DIR"), ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class _Start:
    """What a worker starts with. ``is_alone``: without a supervisor, so it prints to the console."""

    config: Config
    read: ReadConfig
    signals: Signals
    certificate: Certificate | None
    is_alone: bool


@dataclass
class _PendingSignals:
    """The signals that a worker has yet to handle. Several of a kind count as one."""

    stop: asyncio.Event = field(default_factory=asyncio.Event)
    reload: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, numbers: set[int]) -> None:
        if signal.SIGHUP in numbers:
            self.reload.set()
        if numbers & {signal.SIGTERM, signal.SIGINT}:
            self.stop.set()


async def _run_worker(
    start: _Start, sock: socket.socket, report_ready: Callable[[], None], liveness: int | None = None
) -> int:
    """Serve on ``sock`` until a signal to stop, then drain; the exit status.

    The end of the pipe ``liveness`` means that the supervisor has ended, and stops the worker too.
    """
    from regmirror.server.app import open_http_server, open_worker

    pending, signals = _PendingSignals(), start.signals
    loop = asyncio.get_running_loop()
    signals.take(signal.SIGTERM, signal.SIGINT)
    loop.add_reader(signals.fileno(), lambda: pending.add(signals.read()))
    if liveness is not None:
        loop.add_reader(liveness, _stop_at_end, loop, liveness, pending.stop)
    certificate = start.certificate
    async with open_worker(start.config) as worker:
        server = open_http_server(worker)
        tasks = [asyncio.create_task(_follow_reloads(start, pending, worker))]
        if certificate:
            tasks.append(asyncio.create_task(certificate.watch()))
        try:
            server.listen(sock, certificate.context if certificate else None)
            gc.freeze()  # the objects of the start stay for good: no collection has to visit them
            report_ready()
            await pending.stop.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await server.drain(worker.config.server.drain_timeout)
            await server.close()
    loop.remove_reader(signals.fileno())
    return 0


def _stop_at_end(loop: asyncio.AbstractEventLoop, liveness: int, stop: asyncio.Event) -> None:
    loop.remove_reader(liveness)
    stop.set()


async def _follow_reloads(start: _Start, pending: _PendingSignals, worker: Worker) -> None:
    """Reload one after the other; all signals that arrive during a reload cause one more."""
    while True:
        await pending.reload.wait()
        pending.reload.clear()
        with reporting_failed_reload():
            config = await asyncio.to_thread(start.read)
            load_tls(config.server.tls)  # rejected before anything changes
            changes = await worker.reload(config)
            if start.certificate:
                start.certificate.renew(worker.config.server.tls)
            log_changes(changes)
            if start.is_alone:
                print_changes(changes)


class _Supervisor:
    """The process that supervises the workers.

    Two pipes lead to them: each worker writes to ``ready`` when it serves; ``liveness`` ends when
    this process ends, in whichever way, and workers stop then instead of keeping the port.
    """

    def __init__(self, start: _Start, sockets: list[socket.socket], url: str) -> None:
        self._begin, self._sockets, self._url = start, sockets, url
        self._snapshot = take_snapshot(start.config)
        self._signals = start.signals
        self._ready, self._liveness = os.pipe(), os.pipe()
        os.set_blocking(self._ready[0], False)
        self._workers: dict[int, int] = {}  # process id to index of its socket
        self._started_at = [0.0] * len(sockets)
        self._stopping = False

    def run(self) -> int:
        """Start the workers and supervise them until the last one has ended; the exit status."""
        self._signals.take(signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
        gc.freeze()  # a collection would write to the pages that the workers share with this process
        for index in range(len(self._sockets)):
            self._start(index)
        is_ready = self._wait_ready()
        if not is_ready:
            self._stop()
        elif not self._stopping:
            print_ready(self._url, len(self._sockets))
        while self._workers:
            self._handle(self._signals.wait())
            for pid, status, index in self._reap():
                print_line(f"worker {pid} ended with {status}; starting another")
                self._replace(pid, index)
        return 0 if is_ready else 1

    def _wait_ready(self) -> bool:
        """Wait until every worker serves; false if one ended instead."""
        ready = 0
        while ready < len(self._sockets) and not self._stopping:
            self._handle(self._signals.wait(self._ready[0]))
            with suppress(BlockingIOError):
                ready += len(os.read(self._ready[0], len(self._sockets)))
            if self._reap():
                return False
        return True

    def _handle(self, numbers: set[int]) -> None:
        if numbers & {signal.SIGTERM, signal.SIGINT}:
            self._stop()
        if signal.SIGHUP in numbers and not self._stopping:
            self._reload()

    def _start(self, index: int) -> None:
        self._started_at[index] = time.monotonic()
        pid = self._signals.fork(signal.SIGHUP)
        if pid:
            self._workers[pid] = index
            return
        status = 1
        try:
            self._close_other_descriptors(index)
            status = asyncio.run(
                _run_worker(self._begin, self._sockets[index], self._report_ready, self._liveness[0])
            )
        finally:
            os._exit(status)  # the supervisor cleans up

    def _close_other_descriptors(self, index: int) -> None:
        """In a worker: a socket that its own worker closes must not stay open here."""
        os.close(self._liveness[1])
        for other, sock in enumerate(self._sockets):
            if other != index:
                sock.close()

    def _report_ready(self) -> None:
        os.write(self._ready[1], b".")

    def _reap(self) -> list[tuple[int, int, int]]:
        """Workers that ended without a signal to stop: process id, status, index of the socket."""
        ended = []
        with suppress(ChildProcessError):  # no worker is left
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                index = self._workers.pop(found[0], None)
                if index is not None and not self._stopping:
                    ended.append((*found, index))
        return ended

    def _replace(self, pid: int, index: int) -> None:
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(pid)  # type: ignore[no-untyped-call]
        if time.monotonic() - self._started_at[index] < RESPAWN_PAUSE:
            time.sleep(RESPAWN_PAUSE)
        self._start(index)

    def _reload(self) -> None:
        """Check the new configuration here, so that all workers use it or all keep the old one."""
        from regmirror.server.app import check_upstreams

        with reporting_failed_reload():
            config = self._begin.read()
            load_tls(config.server.tls)
            check_upstreams(config)
            changes = plan_changes(self._snapshot, take_snapshot(config))
            self._snapshot = changes.target
            self._begin = replace(self._begin, config=changes.target.config)
            if self._begin.certificate:
                self._begin.certificate.renew(changes.target.config.server.tls)
            print_changes(changes)
            self._send(signal.SIGHUP)

    def _stop(self) -> None:
        """Workers drain; new connections are refused by the kernel instead of waiting in vain."""
        self._stopping = True
        for sock in self._sockets:
            sock.close()
        self._send(signal.SIGTERM)

    def _send(self, number: int) -> None:
        for pid in list(self._workers):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
