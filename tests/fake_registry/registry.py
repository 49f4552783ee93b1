"""An upstream registry for tests."""

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aiohttp import web
from multidict import CIMultiDict

from tests.fake_registry import responses
from tests.fake_registry.auth import Auth, Mode
from tests.fake_registry.content import Content, RepositoryContent
from tests.fake_registry.request_log import Kind, RecordedRequest
from tests.fake_registry.response import PlannedResponse, error_response, json_response
from tests.fake_registry.server import FakeServer
from tests.fake_registry.sources import InMemory


@dataclass
class RateLimit:
    """The pull limit as Docker Hub has it: only GETs of manifests count; window in seconds."""

    limit: int = 100
    remaining: int = 100
    window: int = 21600
    retry_after: int | None = 60

    def apply(self, request: RecordedRequest, response: PlannedResponse) -> None:
        """Count the request, and respond 429 when nothing remains."""
        if request.method == "GET" and response.is_content:
            if self.remaining <= 0:
                rejection = error_response(429, "TOOMANYREQUESTS", "You have reached your pull rate limit.")
                response.status, response.headers = rejection.status, rejection.headers
                response.replace_body(rejection.source)
                if self.retry_after is not None:
                    response.headers["Retry-After"] = str(self.retry_after)
            self.remaining = max(self.remaining - 1, 0)
        response.headers["ratelimit-limit"] = f"{self.limit};w={self.window}"
        response.headers["ratelimit-remaining"] = f"{self.remaining};w={self.window}"


class FakeRegistry(Content, Auth, FakeServer):
    """A registry with content, authentication and faults, which records every request.

    page_size           the most that tags/list and the catalog send at once
    strict_accept       hide manifests whose media type the client does not accept
    has_referrers       False: the referrers API is 404
    rate_limit          a RateLimit for manifests, None for none
    blob_location       where blob requests are redirected to, None to serve them here
    """

    def __init__(
        self,
        *,
        auth: Mode = "none",
        users: Mapping[str, str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        hostname: str = "127.0.0.1",
        send_buffer: int | None = None,
    ) -> None:
        Content.__init__(self)
        Auth.__init__(self, auth, users)
        FakeServer.__init__(self, ssl_context=ssl_context, hostname=hostname, send_buffer=send_buffer)
        self.page_size = responses.PAGE
        self.strict_accept = False
        self.has_referrers = True
        self.rate_limit: RateLimit | None = None
        self.blob_location: Callable[[RecordedRequest], str] | None = None

    def identify(self, http_request: web.Request) -> tuple[Kind, str | None, str | None]:
        return responses.parse_path(http_request.path)

    def respond(self, request: RecordedRequest) -> PlannedResponse:
        if request.kind == "token":
            return self.token_response(request)
        response = self.reject(request) or self._content(request)
        response.headers["Docker-Distribution-Api-Version"] = "registry/2.0"
        return response

    def _content(self, request: RecordedRequest) -> PlannedResponse:
        if request.method not in ("GET", "HEAD") or request.kind == "upload":
            return error_response(405, "UNSUPPORTED", headers={"Allow": "GET, HEAD"})
        if request.kind == "ping":
            return json_response(200, {})
        if request.kind == "catalog":
            return responses.catalog_response(list(self.repositories), request, self.page_size)
        content = self.repositories.get(request.repository or "")
        if request.kind == "referrers":
            return self._referrers(content or RepositoryContent(), request)
        if content is None:
            return error_response(404, "NAME_UNKNOWN", "repository name not known to registry")
        if request.kind == "manifest":
            return self._manifest(content, request)
        if request.kind == "tags":
            return responses.tags_response(content, request, self.page_size)
        return self._blob(content, request)

    def _manifest(self, content: RepositoryContent, request: RecordedRequest) -> PlannedResponse:
        stored = content.find_manifest(request.reference or "")
        response = responses.manifest_response(stored, request, strict_accept=self.strict_accept)
        if self.rate_limit:
            self.rate_limit.apply(request, response)
        return response

    def _referrers(self, content: RepositoryContent, request: RecordedRequest) -> PlannedResponse:
        if not self.has_referrers:
            return error_response(404, "UNSUPPORTED")
        return responses.referrers_response(content, request)

    def _blob(self, content: RepositoryContent, request: RecordedRequest) -> PlannedResponse:
        response = responses.blob_response(content, request)
        if self.blob_location and response.is_content:
            response.status = 307
            response.headers = CIMultiDict({"Location": self.blob_location(request)})
            response.replace_body(InMemory(b""))
        return response
