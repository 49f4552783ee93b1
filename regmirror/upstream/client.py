"""What the rest of the program asks of an upstream: manifests, blobs, tags, referrers.

Everything that is returned has been verified as far as one answer can be; everything that goes
wrong is an UpstreamError that says which upstream did what. Requests are those of the OCI
distribution specification v1.1, "Pull" and "Content discovery".
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
    part_of,
    read_manifest,
    refuse_pages,
)
from regmirror.upstream.error_mapping import error_for_status
from regmirror.upstream.health.shared_state import SharedState
from regmirror.upstream.pagination import PAGES_MAX, ListBytes, next_page, read_page
from regmirror.upstream.requester import Requester, UpstreamRequest
from regmirror.upstream.transport import UpstreamResponse

ACCEPT: Final = ", ".join(ACCEPTED)
PAGE: Final = 1000  # tags asked for at once
_NO_HEAD: Final = (405, 501)


@dataclass(frozen=True, slots=True)
class ManifestHead:
    """What a HEAD on a manifest told; all unknown if the upstream does not support HEAD."""

    digest: Digest | None
    media_type: str
    size: int | None


class UpstreamClient:
    """One upstream. Built without a running loop; connects at the first request.

    ``health`` knows whether it is worth asking.
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
        """``directory`` is where processes share what they know of upstreams; None: they do not.

        Raises ConfigError for certificates that cannot be used and addresses that are none.
        """
        self.name = name
        self._emit, self.read_timeout = emit, config.read_timeout
        self._lists = ListBytes(name)
        self._base = upstream_url(name, config)
        try:
            home = URL(self._base, encoded=True).origin()
        except ValueError as error:
            raise ConfigError(f'upstreams."{name}".url', config.url, str(error)) from None
        self._caller = Requester(
            name,
            config,
            home,
            emit=emit,
            clock=clock,
            offline=offline,
            source=source,
            record=SharedState.of(directory, name, config),
            now=now,
        )
        self.health = self._caller.health

    def __repr__(self) -> str:
        return f"UpstreamClient({self.name!r}, {self._base!r})"

    async def close(self) -> None:
        """Break every connection; requests in flight fail."""
        await self._caller.close()

    def set_offline(self, offline: bool) -> None:
        """Whether requests that begin from now on are refused; those in flight go on (B37)."""
        self._caller.set_offline(offline)

    # --- manifests ---

    async def head_manifest(self, repository: Repository, reference: Reference) -> ManifestHead:
        """What ``reference`` names now, without its content (B22).

        Unknown in every field where HEAD is not supported. Raises UpstreamNotFound on 404, which
        servers without HEAD may also send, UpstreamContentInvalid for a web page or another digest (B10).
        """
        what = _named(repository, reference)
        call = self._manifest_call("HEAD", repository, reference)
        async with self._caller.request(call) as exchange:
            if exchange.status in _NO_HEAD:
                return ManifestHead(None, "", None)
            self._require(exchange, what)
            refuse_pages(self.name, exchange.headers, what)
            headers, digest = exchange.headers, claimed_digest(exchange.headers)
            if isinstance(reference, Digest) and digest not in (None, reference):
                message = f"names another digest ({digest}) for {what}"
                raise UpstreamContentInvalid(self.name, message, reason="digest")
            return ManifestHead(digest, media_type(headers), content_length(headers))

    async def get_manifest(self, repository: Repository, reference: Reference) -> Manifest:
        """The manifest that ``reference`` names, byte for byte and verified (B3, B4, B10).

        Raises UpstreamContentInvalid for bytes that do not hash to the digest asked for and for what is
        no manifest, UpstreamFailed for more than MANIFEST_MAX bytes.
        """
        what = _named(repository, reference)
        call = self._manifest_call("GET", repository, reference)
        async with self._caller.request(call) as exchange:
            self._require(exchange, what)
            refuse_pages(self.name, exchange.headers, what)
            payload = await self._read_short(exchange, MANIFEST_MAX, "manifest")
        expected = reference if isinstance(reference, Digest) else None
        try:
            return await run_by_size(
                len(payload), read_manifest, self.name, exchange.headers, payload, expected, what
            )
        except UpstreamContentInvalid:
            named = expected or claimed_digest(exchange.headers) or ""
            self._emit(VerificationFailed(self.name, "manifest", named, "upstream"))
            raise

    def _manifest_call(
        self, method: Literal["GET", "HEAD"], repository: Repository, reference: Reference
    ) -> UpstreamRequest:
        url = self._url(repository, f"manifests/{reference}")
        return UpstreamRequest("manifest", method, repository.name, url, {"Accept": ACCEPT})

    # --- blobs ---

    async def head_blob(self, repository: Repository, digest: Digest) -> int | None:
        """The size that the upstream states; UpstreamNotFound if it has no such blob.

        None for a redirect, which is not followed (a signed URL is good for GET alone, B22) and
        says nothing: some registries redirect requests for any digest.
        """
        what = _named(repository, digest)
        url = self._blob_url(repository, digest)
        call = UpstreamRequest("blob", "HEAD", repository.name, url, follows="home")
        async with self._caller.request(call) as exchange:
            if exchange.status not in _NO_HEAD:
                if 300 <= exchange.status < 400 and exchange.headers.get("Location"):
                    return None
                self._require(exchange, what)
                refuse_pages(self.name, exchange.headers, what)
                return content_length(exchange.headers)
        return await self.blob_size(repository, digest)

    async def blob_size(self, repository: Repository, digest: Digest) -> int | None:
        """The size of a blob by a GET of its first byte, where HEAD cannot tell it (B22)."""
        what = _named(repository, digest)
        url = self._blob_url(repository, digest)
        call = UpstreamRequest("blob", "GET", repository.name, url, {"Range": "bytes=0-0"})
        async with self._caller.request(call) as exchange:
            if exchange.status == 416:  # an empty blob has no first byte
                return 0
            self._require(exchange, what, 200, 206)
            refuse_pages(self.name, exchange.headers, what)
            return part_of(self.name, exchange, 0).size

    @asynccontextmanager
    async def open_blob(
        self, repository: Repository, digest: Digest, offset: int = 0, stop: int | None = None
    ) -> AsyncIterator[BlobBody]:
        """The blob's bytes from ``offset`` on, up to ``stop``; from 0 if the upstream ignores ranges
        (B19), which then also ignores ``stop``.

        The bytes are not verified here. Raises UpstreamFailed with reason ``range`` if the
        upstream sends another part or has none from there on.
        """
        what = _named(repository, digest)
        last = "" if stop is None else str(stop - 1)
        headers = {"Range": f"bytes={offset}-{last}"} if offset or last else {}
        url = self._blob_url(repository, digest)
        call = UpstreamRequest("blob", "GET", repository.name, url, headers, is_bulk=stop is None)
        async with self._caller.request(call) as exchange:
            if exchange.status == 416:
                message = f"has no bytes of {what} from {offset} on"
                raise UpstreamFailed(self.name, message, reason="range")
            self._require(exchange, what, 200, 206)
            refuse_pages(self.name, exchange.headers, what)
            part = part_of(self.name, exchange, offset)
            body = BlobBody(self.name, exchange, part, self._count_blob_bytes)
            try:
                yield body
            finally:
                body.report()

    def _count_blob_bytes(self, count: int) -> None:
        self._emit(BytesFetched(self.name, "blob", count))

    # --- lists ---

    async def list_tags(self, repository: Repository) -> list[str]:
        """Every tag, in the upstream's order; pages are followed on the upstream's own host."""
        what = f"the tags of {repository.name}"
        url = self._url(repository, f"tags/list?n={PAGE}")
        tags: dict[str, None] = {}
        async for document in self._pages("tags", repository, url, what):
            tags |= dict.fromkeys(tag for tag in _items(document, "tags") if isinstance(tag, str))
        return list(tags)

    async def list_referrers(self, repository: Repository, digest: Digest) -> list[dict[str, Any]] | None:
        """The descriptors of what refers to ``digest``; None if the API is not supported.

        It is not where the answer is 400, 404, 405, 406, 501, a redirect, or no OCI index;
        callers then use the tag schema (specification, "Unavailable Referrers API").
        """
        what = f"referrers of {repository.name}@{digest}"
        url = self._url(repository, f"referrers/{digest}")
        descriptors: list[dict[str, Any]] = []
        try:
            async for document in self._pages("referrers", repository, url, what):
                descriptors += [item for item in _items(document, "manifests") if isinstance(item, dict)]
        except _Unsupported:
            return None
        return descriptors

    async def _pages(
        self, kind: Literal["tags", "referrers"], repository: Repository, url: URL, what: str
    ) -> AsyncIterator[dict[str, Any]]:
        """The documents of a list, page after page; loops and lists without end are ended."""
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
        call = UpstreamRequest(kind, "GET", repository.name, url, accept, follows)
        async with self._caller.request(call) as exchange:
            if kind == "referrers" and not _is_index(exchange):
                raise _Unsupported
            self._require(exchange, what)
            refuse_pages(self.name, exchange.headers, what)
            payload = await self._read_short(exchange, limit, kind)
            return payload, next_page(url, exchange.headers.getall("Link", []))

    # --- what all of them need ---

    def _url(self, repository: Repository, path: str) -> URL:
        return URL(f"{self._base}/v2/{repository.name}/{path}", encoded=True)

    def _blob_url(self, repository: Repository, digest: Digest) -> URL:
        return self._url(repository, f"blobs/{digest}")

    def _require(self, exchange: UpstreamResponse, what: str, *statuses: int) -> None:
        if exchange.status not in (statuses or (200,)):
            raise self._error(exchange, what)

    def _error(self, exchange: UpstreamResponse, what: str) -> UpstreamError:
        if not exchange.is_home and exchange.status in (401, 403, 410):
            message = f"redirects to {exchange.host}, which refuses ({exchange.status}) {what}"
            error: UpstreamError = UpstreamFailed(self.name, message, reason="storage")
        else:
            error = error_for_status(self.name, exchange.host, exchange.status, exchange.headers, what)
        error.is_elsewhere = not exchange.is_home
        return error

    async def _read_short(self, exchange: UpstreamResponse, limit: int, kind: Kind) -> bytes:
        """A body that is kept in memory: bounded in bytes and in time."""
        announced = content_length(exchange.headers)
        if announced is not None and announced > limit:
            message = f"{exchange.host} announced {announced} bytes, more than {limit}"
            raise UpstreamFailed(self.name, message, reason="too-large")
        payload = await exchange.read_all(limit)
        self._emit(BytesFetched(self.name, kind, len(payload)))
        return payload


class _Unsupported(Exception):
    """The upstream has no referrers API."""


def _items(document: dict[str, Any], key: str) -> list[Any]:
    found = document.get(key)
    return found if isinstance(found, list) else []


def _named(repository: Repository, reference: Reference) -> str:
    separator = "@" if isinstance(reference, Digest) else ":"
    return f"{repository.name}{separator}{reference}"


def _is_index(exchange: UpstreamResponse) -> bool:
    if exchange.status == 200:
        return media_type(exchange.headers).lower() == OCI_INDEX
    return not (300 <= exchange.status < 400 or exchange.status in (400, 404, 405, 406, 501))
