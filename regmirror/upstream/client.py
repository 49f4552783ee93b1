"""The client of one upstream: manifests, blobs, tags and referrers.

Results are verified as far as one response allows, and every failure is an UpstreamError that names
the upstream. The requests are those of the OCI distribution specification v1.1, "Pull" and
"Content discovery".
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from yarl import URL

from regmirror.config.schema import Upstream, upstream_url
from regmirror.errors import ConfigError, UpstreamContentInvalid, UpstreamError, UpstreamFailed
from regmirror.oci.manifests import ACCEPTED, MANIFEST_MAX, OCI_INDEX, Manifest
from regmirror.oci.names import Digest, Reference, Repository
from regmirror.offload import run_by_size
from regmirror.telemetry.events import BytesFetched, Emit, Kind, VerificationFailed
from regmirror.upstream.auth.credentials import CredentialSource
from regmirror.upstream.content import (
    BlobBody,
    claimed_digest,
    content_length,
    media_type,
    range_of,
    read_manifest,
    reject_web_page,
)
from regmirror.upstream.error_mapping import error_for_status
from regmirror.upstream.health.shared_state import SharedState
from regmirror.upstream.pagination import PAGES_MAX, ListBytes, next_page, read_page
from regmirror.upstream.requester import Requester, UpstreamRequest
from regmirror.upstream.response import UpstreamResponse

ACCEPT: Final = ", ".join(ACCEPTED)
PAGE_SIZE: Final = 1000  # tags in one response
_NO_HEAD: Final = (405, 501)


@dataclass(frozen=True, slots=True)
class ManifestHead:
    """The headers of a manifest; None and empty where the upstream does not send them."""

    digest: Digest | None
    media_type: str
    size: int | None


class UpstreamClient:
    """One upstream. Built without a running loop; connects at the first request.

    ``health`` states whether the upstream is available.
    """

    def __init__(
        self,
        name: str,
        config: Upstream,
        *,
        emit: Emit,
        clock: Callable[[], float] = time.monotonic,
        offline: bool = False,
        source: CredentialSource | None = None,
        now: Callable[[], float] = time.time,
        directory: Path | None = None,
    ) -> None:
        """``directory`` contains the health state that processes share; with None it is not shared.

        Raises ConfigError for an invalid URL, and for certificates or proxies that cannot be used.
        """
        self.name = name
        self._emit, self.read_timeout = emit, config.read_timeout
        self._lists = ListBytes(name)
        self._base = upstream_url(name, config)
        try:
            origin = URL(self._base, encoded=True).origin()
        except ValueError as error:
            raise ConfigError(f'upstreams."{name}".url', config.url, str(error)) from None
        self._requester = Requester(
            name,
            config,
            origin,
            emit=emit,
            clock=clock,
            offline=offline,
            source=source,
            store=SharedState.of(directory, name, config),
            now=now,
        )
        self.health = self._requester.health

    def __repr__(self) -> str:
        return f"UpstreamClient({self.name!r}, {self._base!r})"

    async def close(self) -> None:
        """Break every connection; requests in flight fail."""
        await self._requester.close()

    def set_offline(self, offline: bool) -> None:
        """Reject or allow requests that start from now on; those in flight continue (B37)."""
        self._requester.set_offline(offline)

    # --- manifests ---

    async def head_manifest(self, repository: Repository, reference: Reference) -> ManifestHead:
        """The headers of the manifest that ``reference`` names now (B22).

        All fields are unknown if the upstream does not support HEAD. Raises UpstreamNotFound on 404,
        which servers without HEAD may also send, and UpstreamContentInvalid for a web page or another
        digest (B10).
        """
        what = _named(repository, reference)
        request = self._manifest_request("HEAD", repository, reference)
        async with self._requester.request(request) as response:
            if response.status in _NO_HEAD:
                return ManifestHead(None, "", None)
            self._require(response, what)
            headers, digest = response.headers, claimed_digest(response.headers)
            if isinstance(reference, Digest) and digest not in (None, reference):
                message = f"states another digest ({digest}) for {what}"
                raise UpstreamContentInvalid(self.name, message, reason="digest")
            return ManifestHead(digest, media_type(headers), content_length(headers))

    async def get_manifest(self, repository: Repository, reference: Reference) -> Manifest:
        """The manifest that ``reference`` names, byte for byte and verified (B3, B4, B10).

        Raises UpstreamContentInvalid if the bytes do not match the digest or are no manifest,
        UpstreamFailed for more than MANIFEST_MAX bytes.
        """
        what = _named(repository, reference)
        request = self._manifest_request("GET", repository, reference)
        async with self._requester.request(request) as response:
            self._require(response, what)
            payload = await self._read_short(response, MANIFEST_MAX, "manifest")
        expected = reference if isinstance(reference, Digest) else None
        try:
            return await run_by_size(
                len(payload), read_manifest, self.name, response.headers, payload, expected, what
            )
        except UpstreamContentInvalid:
            named = expected or claimed_digest(response.headers) or ""
            self._emit(VerificationFailed(self.name, "manifest", named, "upstream"))
            raise

    def _manifest_request(
        self, method: Literal["GET", "HEAD"], repository: Repository, reference: Reference
    ) -> UpstreamRequest:
        url = self._url(repository, f"manifests/{reference}")
        return UpstreamRequest("manifest", method, repository.name, url, {"Accept": ACCEPT})

    # --- blobs ---

    async def head_blob(self, repository: Repository, digest: Digest) -> int | None:
        """The size of a blob as the upstream states it; raises UpstreamNotFound if it has none.

        None for a redirect: it is not followed, because a signed URL is valid for GET alone (B22),
        and it proves nothing, because some registries redirect requests for any digest.
        """
        what = _named(repository, digest)
        url = self._blob_url(repository, digest)
        request = UpstreamRequest("blob", "HEAD", repository.name, url, follows="same-origin")
        async with self._requester.request(request) as response:
            if response.status not in _NO_HEAD:
                if 300 <= response.status < 400 and response.headers.get("Location"):
                    return None
                self._require(response, what)
                return content_length(response.headers)
        return await self.blob_size(repository, digest)

    async def blob_size(self, repository: Repository, digest: Digest) -> int | None:
        """The size of a blob by a GET of its first byte, for upstreams without HEAD (B22)."""
        what = _named(repository, digest)
        url = self._blob_url(repository, digest)
        request = UpstreamRequest("blob", "GET", repository.name, url, {"Range": "bytes=0-0"})
        async with self._requester.request(request) as response:
            if response.status == 416:  # an empty blob has no first byte
                return 0
            self._require(response, what, 200, 206)
            return range_of(self.name, response, 0).size

    @asynccontextmanager
    async def open_blob(
        self, repository: Repository, digest: Digest, offset: int = 0, stop: int | None = None
    ) -> AsyncIterator[BlobBody]:
        """The bytes of a blob from ``offset`` up to ``stop``; all of them if the upstream ignores
        ranges (B19).

        The bytes are not verified here. Raises UpstreamFailed with reason ``range`` if the upstream
        sends another range, or none because the blob ends before ``offset``.
        """
        what = _named(repository, digest)
        last = "" if stop is None else str(stop - 1)
        headers = {"Range": f"bytes={offset}-{last}"} if offset or last else {}
        url = self._blob_url(repository, digest)
        request = UpstreamRequest("blob", "GET", repository.name, url, headers, is_bulk=stop is None)
        async with self._requester.request(request) as response:
            if response.status == 416:
                message = f"has no bytes of {what} from {offset} on"
                raise UpstreamFailed(self.name, message, reason="range")
            self._require(response, what, 200, 206)
            range_ = range_of(self.name, response, offset)
            body = BlobBody(self.name, response, range_, self._count_blob_bytes)
            try:
                yield body
            finally:
                body.report()

    def _count_blob_bytes(self, count: int) -> None:
        self._emit(BytesFetched(self.name, "blob", count))

    # --- lists ---

    async def list_tags(self, repository: Repository) -> list[str]:
        """Every tag, in the upstream's order. Pages are followed on the upstream's own host."""
        what = f"the tags of {repository.name}"
        url = self._url(repository, f"tags/list?n={PAGE_SIZE}")
        tags: dict[str, None] = {}
        async for document in self._documents("tags", repository, url, what):
            tags |= dict.fromkeys(tag for tag in _items(document, "tags") if isinstance(tag, str))
        return list(tags)

    async def list_referrers(self, repository: Repository, digest: Digest) -> list[dict[str, Any]] | None:
        """The descriptors of the referrers of ``digest``; None if the API is not supported.

        It is not supported if the response is 400, 404, 405, 406, 501, a redirect, or no OCI index;
        callers then use the tag schema (specification, "Unavailable Referrers API").
        """
        what = f"referrers of {repository.name}@{digest}"
        url = self._url(repository, f"referrers/{digest}")
        descriptors: list[dict[str, Any]] = []
        try:
            async for document in self._documents("referrers", repository, url, what):
                descriptors += [item for item in _items(document, "manifests") if isinstance(item, dict)]
        except _ReferrersUnsupported:
            return None
        return descriptors

    async def _documents(
        self, kind: Literal["tags", "referrers"], repository: Repository, url: URL, what: str
    ) -> AsyncIterator[dict[str, Any]]:
        """The pages of a list. Ends at a page that was read before, and after PAGES_MAX pages."""
        seen: set[URL] = set()
        following: URL | None = url
        with self._lists.reading() as listed:
            while following is not None and following not in seen and len(seen) < PAGES_MAX:
                seen.add(following)
                payload, following = await self._page(kind, repository, following, what, listed.left)
                listed.add(len(payload))
                yield await run_by_size(len(payload), read_page, self.name, payload, what)

    async def _page(
        self, kind: Literal["tags", "referrers"], repository: Repository, url: URL, what: str, limit: int
    ) -> tuple[bytes, URL | None]:
        follows: Literal["all", "none"] = "none" if kind == "referrers" else "all"
        accept = {"Accept": OCI_INDEX if kind == "referrers" else "application/json"}
        request = UpstreamRequest(kind, "GET", repository.name, url, accept, follows)
        async with self._requester.request(request) as response:
            if kind == "referrers" and not _is_index(response):
                raise _ReferrersUnsupported
            self._require(response, what)
            payload = await self._read_short(response, limit, kind)
            return payload, next_page(url, response.headers.getall("Link", []))

    # --- requests and responses ---

    def _url(self, repository: Repository, path: str) -> URL:
        return URL(f"{self._base}/v2/{repository.name}/{path}", encoded=True)

    def _blob_url(self, repository: Repository, digest: Digest) -> URL:
        return self._url(repository, f"blobs/{digest}")

    def _require(self, response: UpstreamResponse, what: str, *statuses: int) -> None:
        """Raise for any other status, and for a web page in place of ``what``."""
        if response.status not in (statuses or (200,)):
            raise self._error(response, what)
        reject_web_page(self.name, response.headers, what)

    def _error(self, response: UpstreamResponse, what: str) -> UpstreamError:
        if not response.is_upstream and response.status in (401, 403, 410):
            message = f"redirects to {response.host}, which rejects {what} ({response.status})"
            error: UpstreamError = UpstreamFailed(self.name, message, reason="storage")
        else:
            error = error_for_status(self.name, response.host, response.status, response.headers, what)
        error.is_elsewhere = not response.is_upstream
        return error

    async def _read_short(self, response: UpstreamResponse, limit: int, kind: Kind) -> bytes:
        """The body of a response in memory, bounded in bytes and in time."""
        announced = content_length(response.headers)
        if announced is not None and announced > limit:
            message = f"{response.host} announces {announced} bytes, more than {limit}"
            raise UpstreamFailed(self.name, message, reason="too-large")
        payload = await response.read_all(limit)
        self._emit(BytesFetched(self.name, kind, len(payload)))
        return payload


class _ReferrersUnsupported(Exception):
    """The upstream does not support the referrers API."""


def _items(document: dict[str, Any], key: str) -> list[Any]:
    found = document.get(key)
    return found if isinstance(found, list) else []


def _named(repository: Repository, reference: Reference) -> str:
    separator = "@" if isinstance(reference, Digest) else ":"
    return f"{repository.name}{separator}{reference}"


def _is_index(response: UpstreamResponse) -> bool:
    if response.status == 200:
        return media_type(response.headers).lower() == OCI_INDEX
    return not (300 <= response.status < 400 or response.status in (400, 404, 405, 406, 501))
