"""The handlers of manifests and blobs."""

from __future__ import annotations

from typing import Final

from aiohttp import web
from aiohttp.web_request import BaseRequest

from regmirror.blobs.base import Blob
from regmirror.mirror.cache_status import HIT, CachedResult
from regmirror.mirror.mirror import Mirror
from regmirror.mirror.resolver import Resolver
from regmirror.oci.names import Digest, Reference, Repository
from regmirror.v2.conditions import matches_etag, may_use_range, parse_ranges
from regmirror.v2.request import RequestContext
from regmirror.v2.response_cache import REPLAY, Body, Replay, ResponseCache
from regmirror.v2.responses import FOREVER, content_headers, not_modified, whole_response
from regmirror.v2.sender import Sender
from regmirror.v2.streaming import BlobStream

OCTETS: Final = "application/octet-stream"
SMALL: Final = 128 * 1024  # bytes of a blob that goes out in one piece with its headers


class Pull:
    """The handlers of ``/v2/<name>/manifests/<reference>`` and ``/v2/<name>/blobs/<digest>``."""

    def __init__(
        self, resolver: Resolver, mirror: Mirror, sender: Sender, response_cache: ResponseCache
    ) -> None:
        self._resolver, self._mirror = resolver, mirror
        self._sender, self._response_cache = sender, response_cache

    async def manifest(
        self, context: RequestContext, repository: Repository, reference: Reference
    ) -> web.StreamResponse:
        """200 with the exact bytes and media type, without the bytes for HEAD; 304."""
        if context.request.method == "HEAD":
            return await self._head_manifest(context, repository, reference)
        result = await self._resolver.get_manifest(repository, reference)
        manifest = result.content
        context.record(result.cache_status)
        headers = content_headers(
            manifest.digest, manifest.media_type, result.cache_status.header, result.warning
        )
        if _matches_client_copy(context.request, manifest.digest):
            return not_modified(headers)
        context.sent_bytes = manifest.size
        response = whole_response(manifest.payload, headers)
        if result.cache_status is HIT:

            def replay() -> Body | None:
                cached = self._resolver.get_cached_manifest(repository, reference)
                return manifest.payload if cached is manifest else None

            response[REPLAY] = Replay(
                cache=self._response_cache, context=context, body=replay, retained=manifest.size
            )
        return response

    async def _head_manifest(
        self, context: RequestContext, repository: Repository, reference: Reference
    ) -> web.StreamResponse:
        result = await self._resolver.head_manifest(repository, reference)
        head = result.content
        context.record(result.cache_status)
        headers = content_headers(head.digest, head.media_type, result.cache_status.header, result.warning)
        if _matches_client_copy(context.request, head.digest):
            return not_modified(headers)
        headers["Content-Length"] = str(head.size)
        response = web.Response(headers=headers)
        if result.cache_status is HIT:

            def replay() -> Body | None:
                return b"" if self._resolver.get_cached_head(repository, reference) == head else None

            response[REPLAY] = Replay(cache=self._response_cache, context=context, body=replay)
        return response

    async def blob(
        self, context: RequestContext, repository: Repository, digest: Digest
    ) -> web.StreamResponse:
        """200 or 206 with the bytes, also while the blob is being downloaded; 304; 416."""
        if context.request.method == "HEAD":
            result = await self._mirror.head_blob(repository, digest)
            return self._head_blob(context, digest, result)
        opened = await self._mirror.get_blob(repository, digest)
        try:
            response = await self._send_blob(context, digest, opened)
        finally:
            opened.content.close()
        size = opened.content.size
        if opened.cache_status is HIT and size is not None and size <= SMALL:

            def replay() -> Body | None:
                return self._mirror.read_cached_blob(repository, digest, size)

            response[REPLAY] = Replay(cache=self._response_cache, context=context, body=replay)
        return response

    def _head_blob(
        self, context: RequestContext, digest: Digest, result: CachedResult[int | None]
    ) -> web.StreamResponse:
        headers = _blob_headers(context, digest, result)
        if _matches_client_copy(context.request, digest):
            return not_modified(headers)
        status, length = 200, result.content
        if length is not None:
            ranges = _ranges(context.request, digest, length)
            if ranges is not None and len(ranges) == 1:
                status, (start, stop) = 206, ranges[0]
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{length}"
                length = stop - start
            headers["Content-Length"] = str(length)
        return web.Response(status=status, headers=headers)

    async def _send_blob(
        self, context: RequestContext, digest: Digest, result: CachedResult[Blob]
    ) -> web.StreamResponse:
        blob = result.content
        headers = _blob_headers(context, digest, result)
        if _matches_client_copy(context.request, digest):
            return not_modified(headers)
        size = blob.size
        ranges = None if size is None else _ranges(context.request, digest, size)
        response = web.StreamResponse(status=206 if ranges else 200, headers=headers)
        context.status = response.status
        stream = BlobStream(context.request, blob, self._sender)
        try:
            if not ranges or size is None:
                await stream.send_whole(response)
            elif len(ranges) == 1:
                start, stop = ranges[0]
                response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
                await stream.send_range(response, (start, stop))
            else:
                await stream.send_ranges(response, ranges, size, OCTETS)
        finally:
            context.sent_bytes = stream.sent_bytes
        return response


def _blob_headers(
    context: RequestContext, digest: Digest, result: CachedResult[Blob] | CachedResult[int | None]
) -> dict[str, str]:
    context.record(result.cache_status)
    headers = content_headers(digest, OCTETS, result.cache_status.header, result.warning)
    return {**headers, **context.headers, "Accept-Ranges": "bytes", "Cache-Control": FOREVER}


def _ranges(request: BaseRequest, digest: Digest, size: int) -> list[tuple[int, int]] | None:
    header = request.headers.get("Range")
    if header is None or not may_use_range(request.headers.get("If-Range"), digest):
        return None
    return parse_ranges(header, size)


def _matches_client_copy(request: BaseRequest, digest: Digest) -> bool:
    header = request.headers.get("If-None-Match")
    return header is not None and matches_etag(header, digest)
