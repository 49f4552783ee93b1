"""The object store or CDN behind a registry, to which its blobs are redirected by signed URLs."""

import ssl
from dataclasses import dataclass
from typing import Self

from aiohttp import web

from tests.fake_registry.registry import FakeRegistry
from tests.fake_registry.request_log import Kind, RecordedRequest
from tests.fake_registry.response import PlannedResponse, apply_range
from tests.fake_registry.server import FakeServer
from tests.fake_registry.sources import InMemory, Source

# What clients break when they quote a URL again: each of these must arrive as it was sent.
# The space of the decoded `%2B` and `+`, `|` beside `%7C`, `~` beside `%7E`, lower-case escapes.
SIGNED = (
    "X-Amz-Credential=AKIA%2F20300101%2Fus-east-1%2Fs3%2faws4&X-Amz-SignedHeaders=host%3Brange"
    "&name=a+b%2Bc%20d&odd=|%7C~%7E!*'();:@&empty=&flag&X-Amz-Signature="
)


@dataclass
class SignedUrl:
    """A URL that was handed out; uses counts the GETs that it was good for."""

    path: str
    digest: str
    source: Source
    uses: int = 0
    is_expired: bool = False


class FakeStorage(FakeServer):
    """Serves blobs to those who come with a signed URL of the registry, byte for byte unchanged.

    Everything else is 403 with XML: an altered URL, an expired one, a HEAD. An Authorization
    header is rejected with 400, as S3 and Azure do. Its own requests have kind "storage" with the
    digest as reference. While it runs, the registry redirects all its blob requests here.
    """

    def __init__(
        self,
        registry: FakeRegistry,
        *,
        ssl_context: ssl.SSLContext | None = None,
        hostname: str = "127.0.0.1",
    ) -> None:
        super().__init__(ssl_context=ssl_context, hostname=hostname)
        self.registry = registry
        self.signed: dict[str, SignedUrl] = {}
        self._good_for: int | None = None

    def expire_after(self, requests: int | None) -> None:
        """Each URL is good for so many GETs from now on; None: for ever."""
        self._good_for = requests

    def expire(self) -> None:
        """Every URL handed out so far is expired."""
        for url in self.signed.values():
            url.is_expired = True

    @property
    def received_credentials(self) -> bool:
        """Whether any request carried what belongs to the registry alone."""
        return any({"Authorization", "Cookie"} & set(request.headers) for request in self.requests)

    def location(self, request: RecordedRequest) -> str:
        """A new signed URL for the requested blob."""
        digest = request.reference or ""
        source = self.registry.repository(request.repository or "").blobs[digest]
        path = f"/data/{digest.replace(':', '%3A')}/~blob?{SIGNED}{len(self.signed):08x}"
        self.signed[path] = SignedUrl(path, digest, source)
        return f"{self.url}{path}"

    async def __aenter__(self) -> Self:
        await self.start()
        self.registry.blob_location = self.location
        return self

    async def __aexit__(self, *error: object) -> None:
        self.registry.blob_location = None
        await self.stop()

    def identify(self, http_request: web.Request) -> tuple[Kind, str | None, str | None]:
        signed = self.signed.get(http_request.raw_path)
        return "storage", None, signed.digest if signed else None

    def respond(self, request: RecordedRequest) -> PlannedResponse:
        signed = self.signed.get(f"{request.path}?{request.query_string}")
        if request.authorization:
            return _rejection(400, "InvalidArgument")
        if signed is None or request.method != "GET":
            return _rejection(403, "SignatureDoesNotMatch")
        if signed.is_expired or signed.uses == self._good_for:
            return _rejection(403, "AccessDenied")
        signed.uses += 1
        response = PlannedResponse.of(200, signed.source, {"Content-Type": "application/octet-stream"})
        response.headers["Accept-Ranges"] = "bytes"
        apply_range(response, request.headers.get("Range"))
        return response


def _rejection(status: int, code: str) -> PlannedResponse:
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code></Error>'
    return PlannedResponse.of(status, InMemory(body.encode()), {"Content-Type": "application/xml"})
