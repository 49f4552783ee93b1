"""Validation of content from an upstream: headers, manifests, ranges, and the body of a blob."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from regmirror.errors import DigestInvalid, UpstreamContentInvalid, UpstreamFailed
from regmirror.oci.manifests import (
    Manifest,
    NotAManifest,
    describes_content,
    media_type_of,
    parse_document,
)
from regmirror.oci.names import Digest
from regmirror.upstream.detached_body import M, Move
from regmirror.upstream.response import UpstreamResponse

_CONTENT_RANGE: Final = re.compile(r"bytes\s+(\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.IGNORECASE)
_LENGTH: Final = re.compile(r"[0-9]{1,19}")
_REPORT_EVERY: Final = 8 * 1024 * 1024  # bytes between two reports of a download's progress


def media_type(headers: Mapping[str, str]) -> str:
    """The ``Content-Type`` without parameters, unchanged."""
    return headers.get("Content-Type", "").partition(";")[0].strip()


def claimed_digest(headers: Mapping[str, str]) -> Digest | None:
    """``Docker-Content-Digest``; None if it is absent, malformed or of an unsupported algorithm."""
    try:
        return Digest(headers.get("Docker-Content-Digest", "").strip())
    except DigestInvalid:
        return None


def content_length(headers: Mapping[str, str]) -> int | None:
    """``Content-Length``; None if it is absent or malformed."""
    text = headers.get("Content-Length", "").strip()
    return int(text) if _LENGTH.fullmatch(text) else None


def reject_web_page(upstream: str, headers: Mapping[str, str], what: str) -> None:
    """Raise UpstreamContentInvalid for an HTML page and for an encoded body (B10)."""
    encoding = headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        message = f"sent {what} encoded ({encoding[:20]}), although the request excludes encodings"
        raise UpstreamContentInvalid(upstream, message, reason="encoded")
    if media_type(headers).lower() in ("text/html", "application/xhtml+xml"):
        message = f"sent a web page instead of {what}; check for a proxy or a login page in front of it"
        raise UpstreamContentInvalid(upstream, message, reason="html")


def read_manifest(
    upstream: str, headers: Mapping[str, str], payload: bytes, expected: Digest | None, what: str
) -> Manifest:
    """The manifest in ``payload``; raises UpstreamContentInvalid if it is none or not ``expected``.

    Without an expected digest it is computed, by the algorithm of the upstream's header if that
    header is right (B4).
    """
    digest = Digest.of(payload, expected.algorithm) if expected else digest_of(headers, payload)
    if expected is not None and digest != expected:
        message = f"sent bytes that do not match {what}"
        raise UpstreamContentInvalid(upstream, message, reason="digest")
    try:
        document = parse_document(payload)
        if not describes_content(document):
            raise NotAManifest("a document of no known kind")
        bare = media_type_of(document, headers.get("Content-Type", ""))
    except NotAManifest as error:
        message = f"sent no manifest for {what} ({str(error)[:60]})"
        raise UpstreamContentInvalid(upstream, message, reason="not-a-manifest") from None
    return Manifest(digest, bare, payload)


def digest_of(headers: Mapping[str, str], payload: bytes) -> Digest:
    """The claimed digest if ``payload`` matches it, else a computed one."""
    claimed = claimed_digest(headers)
    if claimed is not None and Digest.of(payload, claimed.algorithm) == claimed:
        return claimed
    return Digest.of(payload)


def read_json(payload: bytes) -> dict[str, Any] | None:
    """The JSON object in ``payload``, or None."""
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


@dataclass(frozen=True, slots=True)
class ContentRange:
    """The part of a blob that a body contains, and the size of the whole blob; None if not stated."""

    start: int
    size: int | None
    stop: int | None = None


def range_of(upstream: str, response: UpstreamResponse, offset: int) -> ContentRange:
    """The range of a 200 or 206; raises UpstreamFailed unless it starts at ``offset`` or is all."""
    if response.status == 200:
        length = content_length(response.headers)
        return ContentRange(0, length, length)
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if match is not None:
        first, last = int(match[1]), int(match[2])
        size = None if match[3] == "*" else int(match[3])
        if first == offset and first <= last and (size is None or last < size):
            return ContentRange(first, size, last + 1)
    message = f"{response.host} sent another range of the blob than requested"
    raise UpstreamFailed(upstream, message, reason="range")


class BlobBody:
    """The bytes of a blob while they arrive.

    ``start`` is the offset of the first byte (0 if the upstream ignored the range), ``size`` the size
    of the whole blob, None if the upstream does not state it.
    """

    def __init__(
        self, upstream: str, response: UpstreamResponse, range_: ContentRange, report: Callable[[int], None]
    ) -> None:
        self.start, self.size = range_.start, range_.size
        self._upstream, self._response, self._report = upstream, response, report
        self._offset, self._stop = range_.start, range_.stop
        self._unreported = 0

    async def read(self) -> bytes | memoryview:
        """The bytes that have arrived, at least one; empty at the end. Valid until the next call.

        Raises UpstreamFailed (``truncated``) if the body ends early, UpstreamContentInvalid if it is
        longer than announced, and UpstreamTimeout if nothing arrives for ``read_timeout``.
        """
        chunk = await self._response.read()
        self._count(len(chunk))
        end = self.size if self.size is not None else self._stop
        if not chunk and end is not None and self._offset != end:
            message = f"{self._response.host} ended a blob after {self._offset} of {end} bytes"
            raise UpstreamFailed(self._upstream, message, reason="truncated")
        return chunk

    async def splice(self, move: Move[M]) -> M | None:
        """Let ``move`` take bytes from the socket itself, without a copy in this process.

        None at the end, and where that is impossible now or at all: then call ``read``.
        """
        moved = await self._response.splice(move)
        if moved is not None:
            self._count(moved.count)
        return moved

    def _count(self, count: int) -> None:
        self._offset += count
        self._unreported += count
        if self._unreported >= _REPORT_EVERY:
            self.report()
        if self._stop is not None and self._offset > self._stop:
            message = f"{self._response.host} sent more than the {self._stop} bytes that it announced"
            raise UpstreamContentInvalid(self._upstream, message, reason="length")

    def report(self) -> None:
        """Report the bytes that have arrived since the last report."""
        if self._unreported:
            self._report(self._unreported)
            self._unreported = 0
