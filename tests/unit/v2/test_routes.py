"""Which handler serves which path, and what becomes of errors."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from regmirror.errors import BlobUnknown
from regmirror.metadata.bounded_access import _outcome
from regmirror.oci.paths import UpstreamTable
from regmirror.telemetry.events import Event, RequestServed
from regmirror.v2.routes import CurrentRoutes, Routes

DIGEST = "sha256:" + "0" * 64


class Handlers:
    """Handlers that note their calls and then do what ``act`` does."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.error: BaseException | None = None

    def __getattr__(self, name: str) -> Any:
        async def handle(context: Any, *arguments: object) -> web.StreamResponse:
            self.calls.append((name, *map(str, arguments)))
            if self.error is not None:
                raise self.error
            return web.Response(text=name)

        return handle


class Setup:
    def __init__(self) -> None:
        self.handlers, self.events = Handlers(), list[Event]()
        handlers: Any = self.handlers
        table = UpstreamTable({"docker.io": "docker.io", "ghcr.io": "ghcr.io"}, "docker.io")
        self.routes = Routes(
            table=table,
            pull=handlers,
            lists=handlers,
            response_cache=Mock(),
            operations={"/healthz": handlers.healthz},
            emit=self.events.append,
        )

    async def serve(self, path: str, method: str = "GET", **options: Any) -> web.StreamResponse:
        request = make_mocked_request(method, path, **options)
        request.writer.output_size = 0
        return await CurrentRoutes(self.routes).serve(request)

    def event(self) -> RequestServed:
        (event,) = self.events
        assert isinstance(event, RequestServed)
        return event


@pytest.fixture
def setup() -> Setup:
    return Setup()


@pytest.mark.parametrize(
    ("path", "call"),
    [
        ("/v2/alpine/manifests/1", ("manifest", "docker.io/library/alpine", "1")),
        ("/v2/ghcr.io/a/b/manifests/" + DIGEST, ("manifest", "ghcr.io/a/b", DIGEST)),
        ("/v2/a/b/blobs/" + DIGEST, ("blob", "docker.io/a/b", DIGEST)),
        ("/v2/a/b/blobs/" + DIGEST + "?ns=ghcr.io", ("blob", "ghcr.io/a/b", DIGEST)),
        ("/ghcr.io/v2/a/b/tags/list", ("tags", "ghcr.io/a/b", "a/b")),
        ("/v2/a/b/referrers/" + DIGEST, ("referrers", "docker.io/a/b", DIGEST)),
        ("/v2/_catalog", ("catalog", "None")),
    ],
)
async def test_a_path_has_its_handler(setup: Setup, path: str, call: tuple[str, ...]) -> None:
    response = await setup.serve(path)
    assert response.status == 200
    assert setup.handlers.calls == [call]
    assert response.headers.get("OCI-Namespace") == ("ghcr.io" if "?ns=" in path else None)
    assert setup.event().status == 200


async def test_the_ping_has_an_empty_document(setup: Setup) -> None:
    response = await setup.serve("/v2/")
    assert isinstance(response, web.Response)
    assert response.body == b"{}"


async def test_an_operation_emits_no_event(setup: Setup) -> None:
    await setup.serve("/healthz")
    assert setup.handlers.calls == [("healthz",)]
    assert setup.events == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("POST", "/healthz", 404),
        ("PUT", "/v2/", 405),
        ("DELETE", "/v2/a/b/manifests/1", 405),
        ("POST", "/v2/a/b/blobs/uploads/", 405),
        ("GET", "/v2/other.example/a/manifests/1", 404),
    ],
)
async def test_other_requests_are_rejected(setup: Setup, method: str, path: str, status: int) -> None:
    assert (await setup.serve(path, method)).status == status
    event = setup.event()
    assert (event.status, event.result) == (status, "error")
    assert event.error
    assert setup.handlers.calls == []


@pytest.mark.parametrize(
    ("error", "status"),
    [(BlobUnknown("x"), 404), (OSError(5, "Input/output error"), 500)],
)
async def test_an_error_has_its_status(setup: Setup, error: BaseException, status: int) -> None:
    setup.handlers.error = error
    assert (await setup.serve(f"/v2/a/b/blobs/{DIGEST}")).status == status
    assert setup.event().status == status


async def test_a_client_that_has_left_is_no_error_of_the_server(setup: Setup) -> None:
    setup.handlers.error = ConnectionResetError("gone")
    assert (await setup.serve(f"/v2/a/b/blobs/{DIGEST}")).status == 499
    assert setup.event().error == "client left: gone"


async def test_a_defect_is_emitted_without_its_text(setup: Setup) -> None:
    setup.handlers.error = ValueError("secret")
    with pytest.raises(ValueError, match="secret"):
        await setup.serve(f"/v2/a/b/blobs/{DIGEST}")
    assert (setup.event().status, setup.event().error) == (500, "ValueError in the mirror")


async def test_a_404_after_a_failed_read_is_a_503(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content may be stored."""

    async def fail(*_: object) -> web.StreamResponse:
        outcome = _outcome.get()
        assert outcome is not None
        outcome.has_failed = True
        raise BlobUnknown("x")

    monkeypatch.setattr(setup.handlers, "blob", fail, raising=False)
    response = await setup.serve(f"/v2/a/b/blobs/{DIGEST}")
    assert response.status == 503


async def test_routes_without_requests_are_drained_at_once(setup: Setup) -> None:
    await setup.routes.drain()
