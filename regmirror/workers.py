"""Processes, sockets, signals: from a Config to a serving port.

One worker runs in this process. Several are forked from it, each with its own listening
socket on the one port (``SO_REUSEPORT``); this process then only watches: it passes signals on
and replaces a worker that died. It holds no state, and keeps the sockets open, so that
connections to a worker that is being replaced wait instead of failing.
"""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from aiohttp import web

from regmirror import __version__, logs
from regmirror.config import Config, split_address
from regmirror.errors import ConfigError

BACKLOG: Final = 1024
RESPAWN_PAUSE: Final = 1.0  # seconds between replacements, should workers die at once
_TLS_REASONS: Final = {"KEY_VALUES_MISMATCH": "the key belongs to another certificate"}
TLS_LOOK: Final = 10.0  # seconds between looks whether the certificate was replaced


def serve(config: Config) -> int:
    """Serve until SIGTERM or SIGINT; the exit status. Raises ConfigError before serving."""
    logs.configure()
    tls = load_tls(config)
    count = config.server.workers or os.cpu_count() or 1
    if count > 1:
        # prometheus-client looks for this when it is imported, so it is set before ``app`` is.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="regmirror-metrics-")
    from regmirror.app import prepare

    sockets = bind(config.server.listen, count)
    try:
        prepare(config)
        url = _url(sockets[0], tls is not None)
        if count == 1:
            return asyncio.run(_serve_worker(config, sockets[0], tls, lambda: _say_ready(url, 1)))
        return _Parent(config, sockets, tls, url).run()
    finally:
        for sock in sockets:
            sock.close()
        if count > 1:
            shutil.rmtree(os.environ.pop("PROMETHEUS_MULTIPROC_DIR"), ignore_errors=True)


def bind(listen: str, count: int) -> list[socket.socket]:
    """One listening socket for each worker, all on one port; raises ConfigError if in use."""
    host, port = split_address(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    probe = _bind_one(listen, family, host, port, shared=False)
    if count == 1:
        return [probe]
    # The probe showed that nobody else has the port: sockets that share it would not notice.
    port = probe.getsockname()[1]
    probe.close()
    return [_bind_one(listen, family, host, port, shared=True) for _ in range(count)]


def _bind_one(
    listen: str, family: socket.AddressFamily, host: str, port: int, *, shared: bool
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        reason = f"{(error.strerror or str(error)).lower()}; choose another with --listen"
        raise ConfigError("server.listen", listen, reason) from None
    sock.setblocking(False)
    return sock


def load_tls(config: Config) -> ssl.SSLContext | None:
    """The server's TLS context, or None for plain HTTP; raises ConfigError."""
    tls = config.server.tls
    if not tls.certificate:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # A pass phrase is not asked for on the terminal: a service has none to answer there.
        context.load_cert_chain(tls.certificate, tls.key, password="")
    except (OSError, ssl.SSLError) as error:
        why = _TLS_REASONS.get(getattr(error, "reason", None) or "", "is it PEM, without pass phrase?")
        reason = f"does not load with the key {tls.key}; {why}"
        raise ConfigError("server.tls.certificate", tls.certificate, reason) from None
    return context


def _url(sock: socket.socket, secure: bool) -> str:
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if secure else 'http'}://{shown}:{port}"


def _say_ready(url: str, workers: int) -> None:
    more = f" with {workers} workers" if workers > 1 else ""
    sys.stdout.write(f"regmirror {__version__} serves {url}{more}\n")
    sys.stdout.flush()


async def _serve_worker(
    config: Config,
    sock: socket.socket,
    tls: ssl.SSLContext | None,
    ready: Callable[[], None],
    life: int | None = None,
) -> int:
    """Serve on ``sock`` until told to stop, then let what is in flight end.

    The end of the pipe ``life`` is such a sign as well.
    """
    from regmirror.app import create_app
    from regmirror.v2.server import Runner

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, _say_no_reload)
    if life is not None:
        loop.add_reader(life, _end_with, loop, life, stop)
    runner = Runner(
        create_app(config),
        access_log=None,
        shutdown_timeout=config.server.drain_timeout,
        keepalive_timeout=150.0,  # longer than clients keep idle connections
        max_field_size=65_536,  # podman asks for up to 1024 ranges in one header
        max_line_size=16_384,
    )
    await runner.setup()
    reloading = asyncio.create_task(_reload_tls(config, tls)) if tls else None
    try:
        await web.SockSite(runner, sock, ssl_context=tls, backlog=BACKLOG).start()
        ready()
        await stop.wait()
    finally:
        if reloading:
            reloading.cancel()
        await runner.cleanup()
    return 0


def _say_no_reload() -> None:
    """SIGHUP must not end a server that other programs expect to reload by it."""
    sys.stderr.write(
        "regmirror: SIGHUP ignored: the configuration is read at start, so restart to change it\n"
    )


def _end_with(loop: asyncio.AbstractEventLoop, life: int, stop: asyncio.Event) -> None:
    loop.remove_reader(life)
    stop.set()


async def _reload_tls(config: Config, context: ssl.SSLContext) -> None:
    """Use a renewed certificate for new connections; a bad one changes nothing."""
    tls = config.server.tls

    def stamp() -> list[float]:
        return [Path(path).stat().st_mtime for path in (tls.certificate, tls.key)]

    seen = stamp()
    while True:
        await asyncio.sleep(TLS_LOOK)
        with suppress(OSError, ssl.SSLError):
            if (now := stamp()) != seen:
                context.load_cert_chain(tls.certificate, tls.key)
                seen = now


class _Parent:
    """The process that watches the workers.

    Two pipes lead to them: through ``ready`` each says that it serves; ``life`` ends when this
    process does, however it ends, and workers stop then instead of holding the port.
    """

    def __init__(
        self, config: Config, sockets: list[socket.socket], tls: ssl.SSLContext | None, url: str
    ) -> None:
        self._config, self._sockets, self._tls, self._url = config, sockets, tls, url
        self._ready, self._life = os.pipe(), os.pipe()
        self._workers: dict[int, int] = {}  # process id to place
        self._started_at = [0.0] * len(sockets)
        self._stopping = False

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._pass_on)
        for place in range(len(self._sockets)):
            self._start(place)
        if not self._all_are_ready():
            self._stop()
            while self._workers:
                self._wait()
            return 1
        if not self._stopping:
            _say_ready(self._url, len(self._sockets))
        while self._workers:
            self._wait()
        return 0

    def _all_are_ready(self) -> bool:
        """Wait until every worker serves; false if one ended instead."""
        said = 0
        while said < len(self._sockets) and not self._stopping:
            if select.select([self._ready[0]], [], [], 0.1)[0]:
                said += len(os.read(self._ready[0], len(self._sockets)))
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid and self._workers.pop(pid, None) is not None and not self._stopping:
                return False
        return True

    def _start(self, place: int) -> None:
        self._started_at[place] = time.monotonic()
        pid = os.fork()
        if pid:
            self._workers[pid] = place
            if self._stopping:  # the signal came before this worker was known
                self._stop()
            return
        status = 1
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            os.close(self._life[1])
            status = asyncio.run(
                _serve_worker(self._config, self._sockets[place], self._tls, self._say_ready, self._life[0])
            )
        finally:
            os._exit(status)  # the clean-up is the parent's

    def _say_ready(self) -> None:
        os.write(self._ready[1], b".")

    def _wait(self) -> None:
        """Until a worker ends; replace it unless that was meant."""
        pid, status = os.waitpid(-1, 0)
        place = self._workers.pop(pid, None)
        if place is None or self._stopping:
            return
        sys.stderr.write(f"regmirror: worker {pid} ended with {status}; starting another\n")
        _forget_gauges(pid)
        if time.monotonic() - self._started_at[place] < RESPAWN_PAUSE:
            time.sleep(RESPAWN_PAUSE)
        self._start(place)

    def _pass_on(self, number: int, _frame: object) -> None:
        for pid in list(self._workers):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _stop(self, *_: object) -> None:
        self._stopping = True
        for pid in list(self._workers):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def _forget_gauges(pid: int) -> None:
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(pid)  # type: ignore[no-untyped-call]
