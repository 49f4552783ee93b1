"""A real HTTP server on an ephemeral port, in the test process and its event loop."""

import asyncio
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

from aiohttp import hdrs, web
from multidict import CIMultiDict, MultiDict

from tests.fake_registry.faults import Action, Dropped, Fault, Hold, Pause, Stage
from tests.fake_registry.request_log import Kind, Match, RecordedRequest, RequestLog
from tests.fake_registry.response import HIDDEN, PlannedResponse, reset, send


class FakeServer(RequestLog, ABC):
    """Sends the response that `respond` returns, applies the faults, and records everything.

    Use it as an asynchronous context manager, or `start` and `stop` it; a server that is
    started again listens on the port that it had. connections counts the TCP connections
    ever accepted. send_buffer bounds what the kernel takes in ahead of a slow client.
    """

    def __init__(
        self,
        *,
        ssl_context: ssl.SSLContext | None = None,
        hostname: str = "127.0.0.1",
        send_buffer: int | None = None,
    ) -> None:
        super().__init__()
        self.connections = 0
        self.port = 0
        self._hostname = hostname
        self._ssl_context = ssl_context
        self._send_buffer = send_buffer
        self._faults: list[Fault] = []
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None

    @property
    def host(self) -> str:
        return f"{self._hostname}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self._ssl_context else 'http'}://{self.host}"

    # --- for subclasses ---

    @abstractmethod
    def identify(self, http_request: web.Request) -> tuple[Kind, str | None, str | None]:
        """Kind, repository and reference of a request."""

    @abstractmethod
    def respond(self, request: RecordedRequest) -> PlannedResponse:
        """The response without any fault."""

    def listen(self) -> socket.socket:
        """The listening socket: on the port that it had, if it has had one."""
        return socket.create_server(("127.0.0.1", self.port), backlog=1024)

    # --- faults ---

    def fault(
        self,
        *actions: Action,
        kind: Kind | None = None,
        method: str | None = None,
        repository: str | None = None,
        reference: str | None = None,
        where: Callable[[RecordedRequest], bool] | None = None,
        times: int | None = 1,
        skip: int = 0,
    ) -> Fault:
        """Apply actions to matching requests: not to the first `skip`, then to the next `times` (None: all).

        Several faults may hit one request; they are applied in the order in which they were added.
        """
        match = Match(kind, method, repository, reference, None, where)
        fault = Fault(actions, match, times, skip)
        self._faults.append(fault)
        return fault

    def hold(
        self,
        kind: Kind | None = None,
        method: str | None = None,
        repository: str | None = None,
        reference: str | None = None,
        times: int | None = None,
        skip: int = 0,
    ) -> Hold:
        """Delay the responses to matching requests until the returned gate is released."""
        hold = Hold()
        self.fault(
            hold,
            kind=kind,
            method=method,
            repository=repository,
            reference=reference,
            times=times,
            skip=skip,
        )
        return hold

    def pause(
        self,
        after: int,
        kind: Kind | None = "blob",
        repository: str | None = None,
        reference: str | None = None,
        times: int | None = None,
        skip: int = 0,
    ) -> Pause:
        """Stop matching bodies after so many bytes until the returned gate is released."""
        pause = Pause(after)
        self.fault(pause, kind=kind, repository=repository, reference=reference, times=times, skip=skip)
        return pause

    def clear_faults(self) -> None:
        """Remove all faults; requests at a gate wait until that is released."""
        self._faults.clear()

    # --- start and stop ---

    async def start(self) -> None:
        """Listen: on an ephemeral port the first time, on the same one afterwards."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._handle)
        app.on_response_prepare.append(_hide_headers)
        # Handlers end with their client, so that a client that leaves shows in the journal at once.
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await self._runner.setup()
        listening = self.listen()
        if self._send_buffer:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._send_buffer)
        self.port = listening.getsockname()[1]
        self._listener = await asyncio.get_running_loop().create_server(
            self._accept, sock=listening, ssl=self._ssl_context, backlog=1024
        )

    async def stop(self) -> None:
        """Reject connections and break those that are open; content, journal and faults stay."""
        if self._listener is None or self._runner is None:
            return
        self._listener.close()
        self.drop_connections()
        await self._runner.cleanup()
        self._listener = self._runner = None

    @property
    def open_connections(self) -> int:
        """How many connections are open, idle ones included."""
        server = self._runner.server if self._runner else None
        return len(server.connections) if server else 0

    def drop_connections(self) -> None:
        """Break every open connection, idle or in the middle of a response."""
        server = self._runner.server if self._runner else None
        for connection in server.connections if server else ():
            if connection.transport:
                connection.transport.abort()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    # --- internal ---

    def _accept(self) -> asyncio.Protocol:
        """Called by the loop for each accepted connection, before any TLS handshake."""
        if self._runner is None or self._runner.server is None:
            raise RuntimeError("accepted a connection while stopped")
        self.connections += 1
        self.notify()
        return self._runner.server()

    async def _handle(self, http_request: web.Request) -> web.StreamResponse:
        request = self._record(http_request)
        try:
            if http_request.method == "POST":
                request.form = await _form(http_request)
            return await send(http_request, request, await self._plan(request), self)
        except Dropped as dropped:
            request.outcome = "cut"
            if dropped.reset:
                await reset(http_request.transport)
            elif http_request.transport:
                http_request.transport.close()
            return web.Response()
        finally:
            if request.outcome == "waiting":
                request.outcome = "aborted"
            self.notify()

    def _record(self, http_request: web.Request) -> RecordedRequest:
        kind, repository, reference = self.identify(http_request)
        path, _, query_string = http_request.raw_path.partition("?")
        peer = http_request.transport.get_extra_info("peername") if http_request.transport else None
        request = RecordedRequest(
            method=http_request.method,
            path=path,
            query_string=query_string,
            query=MultiDict(http_request.query),
            headers=CIMultiDict(http_request.headers),
            kind=kind,
            repository=repository,
            reference=reference,
            peer_port=peer[1] if peer else 0,
        )
        self.record(request)
        return request

    async def _plan(self, request: RecordedRequest) -> PlannedResponse:
        """Apply the faults, and return the response to send.

        The response is made after the waiting, from the content of that moment.
        """
        early = [f for f in self._faults if f.stage is Stage.ALWAYS and f.matches(request)]
        for action in [action for fault in early for action in fault.actions]:
            await action.before(request)
        response = self.respond(request)
        for action in [action for fault in early for action in fault.actions]:
            action.change(response, request)
        for fault in list(self._faults):
            if _may_apply(fault.stage, response, request) and fault.matches(request):
                for action in fault.actions:
                    await action.before(request)
                    action.change(response, request)
        return response


def _may_apply(stage: Stage, response: PlannedResponse, request: RecordedRequest) -> bool:
    if stage is Stage.ALWAYS or not response.is_content:
        return False
    return stage is Stage.CONTENT or request.method != "HEAD"


async def _form(http_request: web.Request) -> MultiDict[str]:
    form: MultiDict[str] = MultiDict()
    for name, value in (await http_request.post()).items():
        if isinstance(value, str):
            form.add(name, value)
    return form


async def _hide_headers(http_request: web.Request, stream: web.StreamResponse) -> None:
    """The server has added its own headers by now; remove those that are hidden."""
    for name in stream.get(HIDDEN, frozenset()):
        if name != hdrs.CONTENT_LENGTH.lower():
            stream.headers.popall(name, None)
