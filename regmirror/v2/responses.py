"""Responses: the only place where values and errors become HTTP.

Every response below ``/v2`` has the API version; content has its digest as entity tag, its exact
media type and its length (distribution specification, "Pulling"). Errors are the specification's
JSON. Once a response has begun, a failure closes the connection short of ``Content-Length``, by
FIN: clients resume after that and give up after a reset.
"""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any, Final

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload
from aiohttp.web_request import BaseRequest

from regmirror import __version__
from regmirror.errors import RangeInvalid, RegistryError, Unsupported
from regmirror.oci.names import Digest

SERVER: Final = f"regmirror/{__version__}"
COMMON: Final = {"Docker-Distribution-Api-Version": "registry/2.0", "Server": SERVER}
METHODS: Final = "GET, HEAD"
FOREVER: Final = "max-age=31536000"
SLICE: Final = 128 * 1024  # bytes; a longer body is written in slices


class _SlicedBody(Payload):
    """A body that is written in slices, each after the client has read enough of those before.

    aiohttp joins bytes with their headers and passes all of it to the transport, so that each
    connection whose client does not read has a copy.
    """

    def __init__(self, body: bytes) -> None:
        super().__init__(body)
        self.body = body

    @property
    def size(self) -> int:
        return len(self.body)

    async def write(self, writer: AbstractStreamWriter) -> None:
        view = memoryview(self.body)
        for start in range(0, len(view), SLICE):
            await writer.write(view[start : start + SLICE])
            await asyncio.sleep(0)  # a client that reads fast must not delay the others

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return str(self.body, encoding, errors)


def whole_response(body: bytes, headers: dict[str, str]) -> web.Response:
    """200 with a whole body; responses may share one ``body``."""
    if len(body) <= SLICE:
        return web.Response(body=body, headers=headers)
    return web.Response(body=_SlicedBody(body), headers=headers)


class Internal(RegistryError):
    """This server failed, not the upstream."""


def content_headers(digest: Digest, media_type: str, cache_status: str, warning: str = "") -> dict[str, str]:
    """The headers of a manifest or blob, without its length."""
    headers = {
        **COMMON,
        "Content-Type": media_type,
        "Docker-Content-Digest": digest,
        "ETag": f'"{digest}"',
        "Cache-Status": cache_status,
    }
    if warning:
        headers["Warning"] = warning_header(warning)
    return headers


def warning_header(text: str) -> str:
    """``299 - "<text>"``, the form of ``Warning`` that the distribution specification allows."""
    clean = "".join(char if char.isascii() and char.isprintable() else "?" for char in text)
    escaped = clean[:1000].replace("\\", "\\\\").replace('"', '\\"')
    return f'299 - "{escaped}"'


def json_response(
    document: Any, headers: dict[str, str], media_type: str = "application/json"
) -> web.Response:
    """JSON. The media type has no parameters: clients compare it as a text."""
    body = json.dumps(document, separators=(",", ":")).encode()
    return whole_response(body, {**COMMON, **headers, "Content-Type": media_type})


def not_modified(headers: dict[str, str]) -> web.Response:
    """304 with the headers of the content (RFC 9110 §15.4.5)."""
    return web.Response(
        status=304, headers={name: value for name, value in headers.items() if name != "Content-Type"}
    )


def error_response(error: RegistryError) -> web.Response:
    """The response to a failed request: status, the specification's JSON, and headers."""
    detail: dict[str, Any] = {}
    if reason := getattr(error, "reason", ""):
        detail = {"upstream": getattr(error, "upstream", ""), "reason": reason}
    headers: dict[str, str] = {}
    if error.status in (429, 503):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after or 1)))
    if isinstance(error, Unsupported):
        headers["Allow"] = METHODS
    if isinstance(error, RangeInvalid):
        headers["Content-Range"] = f"bytes */{error.size}"
    document = {"errors": [{"code": error.code, "message": error.message, "detail": detail}]}
    response = json_response(document, headers)
    response.set_status(error.status)
    return response


def abort(request: BaseRequest) -> None:
    """Close the connection after the bytes that were written: the response ends short."""
    if request.transport is not None:
        request.transport.close()
