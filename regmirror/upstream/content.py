"""Content as it arrives from an upstream: what of it may be believed, and what is a lie."""

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
from regmirror.upstream.transport import UpstreamResponse

_CONTENT_RANGE: Final = re.compile(r"bytes\s+(\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.IGNORECASE)
_LENGTH: Final = re.compile(r"[0-9]{1,19}")
_REPORT_EVERY: Final = 8 * 1024 * 1024  # bytes between two reports of a download's progress


def media_type(headers: Mapping[str, str]) -> str:
    """The bare ``Content-Type``, as it was written."""
    return headers.get("Content-Type", "").partition(";")[0].strip()


def claimed_digest(headers: Mapping[str, str]) -> Digest | None:
    """``Docker-Content-Digest``, if it can be one of ours."""
    try:
        return Digest(headers.get("Docker-Content-Digest", "").strip())
    except DigestInvalid:
        return None


def content_length(headers: Mapping[str, str]) -> int | None:
    text = headers.get("Content-Length", "").strip()
    return int(text) if _LENGTH.fullmatch(text) else None


def refuse_pages(upstream: str, headers: Mapping[str, str], what: str) -> None:
    """Raise UpstreamContentInvalid for a page meant for people or a body that is encoded (B10)."""
    encoding = headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        message = f"sent {what} encoded ({encoding[:20]}), although it was asked not to"
        raise UpstreamContentInvalid(upstream, message, reason="encoded")
    if media_type(headers).lower() in ("text/html", "application/xhtml+xml"):
        message = f"sent a web page instead of {what}; is there a proxy or a login page before it?"
        raise UpstreamContentInvalid(upstream, message, reason="html")


def read_manifest(
    upstream: str, headers: Mapping[str, str], payload: bytes, expected: Digest | None, what: str
) -> Manifest:
    """The manifest in ``payload``; UpstreamContentInvalid if it is none, or not the one ``expected``.

    Without an expected digest it is our own, in the algorithm of the upstream's header if that
    header is right (B4).
    """
    digest = Digest.of(payload, expected.algorithm) if expected else own_digest(headers, payload)
    if expected is not None and digest != expected:
        message = f"sent bytes that are not {what}"
        raise UpstreamContentInvalid(upstream, message, reason="digest")
    try:
        document = parse_document(payload)
        if not describes_content(document):
            raise NotAManifest("a document of no known kind")
        bare = media_type_of(document, headers.get("Content-Type", ""))
    except NotAManifest as error:
        message = f"sent what is no manifest for {what} ({str(error)[:60]})"
        raise UpstreamContentInvalid(upstream, message, reason="not-a-manifest") from None
    return Manifest(digest, bare, payload)


def own_digest(headers: Mapping[str, str], payload: bytes) -> Digest:
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
class Part:
    """Where a body starts within the blob, where it ends, and the size of the whole blob; as far as
    that was told.
    """

    start: int
    size: int | None
    stop: int | None = None


def part_of(upstream: str, exchange: UpstreamResponse, offset: int) -> Part:
    """The part of a blob that a 200 or 206 carries; UpstreamFailed if it is not what was asked."""
    if exchange.status == 200:
        length = content_length(exchange.headers)
        return Part(0, length, length)
    match = _CONTENT_RANGE.fullmatch(exchange.headers.get("Content-Range", "").strip())
    if match is not None:
        first, last = int(match[1]), int(match[2])
        size = None if match[3] == "*" else int(match[3])
        if first == offset and first <= last and (size is None or last < size):
            return Part(first, size, last + 1)
    message = f"{exchange.host} sent another part of the blob than was asked for"
    raise UpstreamFailed(upstream, message, reason="range")


class BlobBody:
    """The bytes of a blob while they arrive.

    ``start`` is the offset of the first byte that comes (0 if the upstream ignored the range),
    ``size`` the size of the whole blob, None if the upstream does not say.
    """

    def __init__(
        self, upstream: str, exchange: UpstreamResponse, part: Part, report: Callable[[int], None]
    ) -> None:
        self.start, self.size = part.start, part.size
        self._upstream, self._exchange, self._report = upstream, exchange, report
        self._offset, self._stop = part.start, part.stop
        self._unreported = 0

    async def read(self) -> bytes | memoryview:
        """Whatever has arrived, at least one byte, to be used until the next call; nothing at the end
        of the blob.

        Raises UpstreamFailed (``truncated``) if the body ends before the blob does, UpstreamContentInvalid if
        it goes on beyond the part that it was to carry, and UpstreamTimeout if nothing comes for
        ``read_timeout``.
        """
        chunk = await self._exchange.read()
        self._count(len(chunk))
        end = self.size if self.size is not None else self._stop
        if not chunk and end is not None and self._offset != end:
            message = f"{self._exchange.host} ended a blob after {self._offset} of {end} bytes"
            raise UpstreamFailed(self._upstream, message, reason="truncated")
        return chunk

    async def splice(self, move: Move[M]) -> M | None:
        """Have ``move`` take what has arrived from the connection itself, without copying it here.

        None while that cannot be, and at the end: then ``read`` goes on.
        """
        moved = await self._exchange.splice(move)
        if moved is not None:
            self._count(moved.count)
        return moved

    def _count(self, count: int) -> None:
        self._offset += count
        self._unreported += count
        if self._unreported >= _REPORT_EVERY:
            self.report()
        if self._stop is not None and self._offset > self._stop:
            message = f"{self._exchange.host} sent more than the {self._stop} bytes that it announced"
            raise UpstreamContentInvalid(self._upstream, message, reason="length")

    def report(self) -> None:
        """Tell how many bytes have arrived since the last report."""
        if self._unreported:
            self._report(self._unreported)
            self._unreported = 0
