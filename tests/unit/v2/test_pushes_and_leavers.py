"""The errors of clients that push, and the status of clients that leave."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from regmirror.errors import Unavailable
from regmirror.oci.paths import UpstreamTable
from regmirror.telemetry.events import RequestServed
from regmirror.v2.routes import Routes

BLOB = "/v2/team/app/blobs/sha256:" + "0" * 64


async def serve(
    path: str, method: str = "GET", *, error: Exception | None = None, sent: int = 0
) -> tuple[Any, RequestServed]:
    """The response and the event of a request, whose handler raises ``error``."""
    events: list[Any] = []
    handlers = Mock(blob=AsyncMock(side_effect=error))
    table = UpstreamTable({"docker.io": "docker.io"}, "docker.io")
    routes = Routes(
        table=table, pull=handlers, lists=handlers, response_cache=Mock(), operations={}, emit=events.append
    )
    request = make_mocked_request(method, path)
    request.writer.output_size = sent
    response = await routes.serve(request)
    return response, events[0]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "GET"])
@pytest.mark.parametrize("session", ["", "1234"])
async def test_an_upload_is_rejected_as_a_push(method: str, session: str) -> None:
    """B56."""
    response, event = await serve(f"/v2/team/app/blobs/uploads/{session}", method)
    assert isinstance(response, web.Response)
    assert response.body is not None
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")
    message = json.loads(bytes(response.body))["errors"][0]["message"]  # type: ignore[arg-type]
    assert message.endswith("team/app is mirrored: it can be pulled, not pushed")
    assert event.error == message


async def test_a_client_that_leaves_before_a_response_has_a_status() -> None:
    _, event = await serve(BLOB, error=ConnectionResetError("closed"))
    assert (event.status, event.error) == (499, "client left: closed")


async def test_an_error_after_the_first_byte_has_a_status() -> None:
    _, event = await serve(BLOB, error=Unavailable("interrupted"), sent=10)
    assert (event.status, event.error) == (503, "interrupted")
