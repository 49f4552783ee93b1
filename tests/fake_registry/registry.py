"""An upstream registry for tests."""

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aiohttp import web
from multidict import CIMultiDict

from tests.fake_registry import answers
from tests.fake_registry.auth import Auth, Mode
from tests.fake_registry.content import Content, RepositoryContent
from tests.fake_registry.journal import Kind, Seen
from tests.fake_registry.reply import Reply, error_reply, json_reply
from tests.fake_registry.server import FakeServer
from tests.fake_registry.sources import InMemory


@dataclass
class RateLimit:
    """The pull limit as Docker Hub has it: only GETs of manifests count; window in seconds."""

    limit: int = 100
    remaining: int = 100
    window: int = 21600
    retry_after: int | None = 60

    def apply(self, seen: Seen, reply: Reply) -> None:
        """Count the request, and answer 429 when nothing remains."""
        if seen.method == "GET" and reply.is_content:
            if self.remaining <= 0:
                refusal = error_reply(429, "TOOMANYREQUESTS", "You have reached your pull rate limit.")
                reply.status, reply.headers = refusal.status, refusal.headers
                reply.replace_body(refusal.source)
                if self.retry_after is not None:
                    reply.headers["Retry-After"] = str(self.retry_after)
            self.remaining = max(self.remaining - 1, 0)
        reply.headers["ratelimit-limit"] = f"{self.limit};w={self.window}"
        reply.headers["ratelimit-remaining"] = f"{self.remaining};w={self.window}"


class FakeRegistry(Content, Auth, FakeServer):
    """A registry with content, authentication and faults, which remembers what it was asked.

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
        self.page_size = answers.PAGE
        self.strict_accept = False
        self.has_referrers = True
        self.rate_limit: RateLimit | None = None
        self.blob_location: Callable[[Seen], str] | None = None

    def identify(self, request: web.Request) -> tuple[Kind, str | None, str | None]:
        return answers.parse_path(request.path)

    def answer(self, seen: Seen) -> Reply:
        if seen.kind == "token":
            return self.token_reply(seen)
        reply = self.refuse(seen) or self._content(seen)
        reply.headers["Docker-Distribution-Api-Version"] = "registry/2.0"
        return reply

    def _content(self, seen: Seen) -> Reply:
        if seen.method not in ("GET", "HEAD") or seen.kind == "upload":
            return error_reply(405, "UNSUPPORTED", headers={"Allow": "GET, HEAD"})
        if seen.kind == "ping":
            return json_reply(200, {})
        if seen.kind == "catalog":
            return answers.catalog_reply(list(self.repositories), seen, self.page_size)
        content = self.repositories.get(seen.repository or "")
        if seen.kind == "referrers":
            return self._referrers(content or RepositoryContent(), seen)
        if content is None:
            return error_reply(404, "NAME_UNKNOWN", "repository name not known to registry")
        if seen.kind == "manifest":
            return self._manifest(content, seen)
        if seen.kind == "tags":
            return answers.tags_reply(content, seen, self.page_size)
        return self._blob(content, seen)

    def _manifest(self, content: RepositoryContent, seen: Seen) -> Reply:
        stored = content.find_manifest(seen.reference or "")
        reply = answers.manifest_reply(stored, seen, strict_accept=self.strict_accept)
        if self.rate_limit:
            self.rate_limit.apply(seen, reply)
        return reply

    def _referrers(self, content: RepositoryContent, seen: Seen) -> Reply:
        if not self.has_referrers:
            return error_reply(404, "UNSUPPORTED")
        return answers.referrers_reply(content, seen)

    def _blob(self, content: RepositoryContent, seen: Seen) -> Reply:
        reply = answers.blob_reply(content, seen)
        if self.blob_location and reply.is_content:
            reply.status = 307
            reply.headers = CIMultiDict({"Location": self.blob_location(seen)})
            reply.replace_body(InMemory(b""))
        return reply
