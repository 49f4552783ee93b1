"""The responses of a registry without faults."""

import re
from collections.abc import Sequence
from urllib.parse import quote, urlencode

from tests.fake_registry.content import INDEX, RepositoryContent, StoredManifest, referrers_index
from tests.fake_registry.request_log import Kind, RecordedRequest
from tests.fake_registry.response import PlannedResponse, apply_range, error_response, json_response
from tests.fake_registry.sources import InMemory

PAGE = 1000

# From the right end: a component of a name may itself be `blobs`, `manifests` or `tags`.
_PATHS: list[tuple[Kind, re.Pattern[str]]] = [
    ("ping", re.compile(r"/v2/?")),
    ("catalog", re.compile(r"/v2/_catalog")),
    ("token", re.compile(r"/token")),
    ("tags", re.compile(r"/v2/(?P<repository>.+)/tags/list")),
    ("manifest", re.compile(r"/v2/(?P<repository>.+)/manifests/(?P<reference>[^/]+)")),
    ("referrers", re.compile(r"/v2/(?P<repository>.+)/referrers/(?P<reference>[^/]+)")),
    ("upload", re.compile(r"/v2/(?P<repository>.+)/blobs/uploads(/.*)?")),
    ("blob", re.compile(r"/v2/(?P<repository>.+)/blobs/(?P<reference>[^/]+)")),
]


def parse_path(path: str) -> tuple[Kind, str | None, str | None]:
    """Kind, repository and reference that a decoded path names."""
    for kind, pattern in _PATHS:
        found = pattern.fullmatch(path)
        if found:
            named = found.groupdict()
            return kind, named.get("repository"), named.get("reference")
    return "other", None, None


def manifest_response(
    stored: StoredManifest | None, request: RecordedRequest, *, strict_accept: bool
) -> PlannedResponse:
    """A manifest, byte for byte; strict registries hide what the client does not accept."""
    if stored is None:
        return error_response(404, "MANIFEST_UNKNOWN", "manifest unknown")
    if strict_accept and not accepts(request, stored.media_type):
        return error_response(404, "MANIFEST_UNKNOWN", f"accept header does not support {stored.media_type}")
    if (unchanged := not_modified(stored.digest, request)) is not None:
        return unchanged
    headers = {
        "Content-Type": stored.media_type,
        "Docker-Content-Digest": stored.digest,
        "ETag": f'"{stored.digest}"',
    }
    return PlannedResponse.of(200, InMemory(stored.body), headers)


def blob_response(content: RepositoryContent, request: RecordedRequest) -> PlannedResponse:
    """A blob or the requested part of it."""
    digest = request.reference or ""
    source = content.blobs.get(digest)
    if source is None:
        return error_response(404, "BLOB_UNKNOWN", "blob unknown to registry")
    if (unchanged := not_modified(digest, request)) is not None:
        return unchanged
    headers = {
        "Content-Type": "application/octet-stream",
        "Docker-Content-Digest": digest,
        "ETag": f'"{digest}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "max-age=31536000",
    }
    response = PlannedResponse.of(200, source, headers)
    if request.headers.get("If-Range") in (None, f'"{digest}"'):
        apply_range(response, request.headers.get("Range"))
    return response


def tags_response(content: RepositoryContent, request: RecordedRequest, page_size: int) -> PlannedResponse:
    """The tags in ASCII order, a page at a time."""
    try:
        page, link = page_of(sorted(content.tags), request, page_size)
    except ValueError:
        return error_response(400, "PAGINATION_NUMBER_INVALID")
    return json_response(200, {"name": request.repository, "tags": page}, link)


def catalog_response(names: Sequence[str], request: RecordedRequest, page_size: int) -> PlannedResponse:
    """The repositories in ASCII order, a page at a time."""
    try:
        page, link = page_of(sorted(names), request, page_size)
    except ValueError:
        return error_response(400, "PAGINATION_NUMBER_INVALID")
    return json_response(200, {"repositories": page}, link)


def referrers_response(content: RepositoryContent, request: RecordedRequest) -> PlannedResponse:
    """The referrers of a digest, filtered by any of the requested artifact types; never 404."""
    digest = request.reference or ""
    if not re.fullmatch(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", digest):
        return error_response(400, "DIGEST_INVALID")
    types = request.query.getall("artifactType", [])
    headers = {"Content-Type": INDEX}
    if types:
        headers["OCI-Filters-Applied"] = "artifactType"
    return json_response(200, referrers_index(content, digest, types), headers)


def page_of(names: list[str], request: RecordedRequest, page_size: int) -> tuple[list[str], dict[str, str]]:
    """One page of names and the Link to the next; ValueError for an `n` that is no natural number."""
    requested = int(request.query.get("n", page_size))
    if requested < 0:
        raise ValueError(f"n={requested}")
    length = min(requested, page_size)
    last = request.query.get("last")
    remaining = [name for name in names if last is None or name > last]
    page = remaining[:length]
    if not page or len(page) == len(remaining):
        return page, {}
    query = urlencode({"last": page[-1], "n": length}, quote_via=quote)
    return page, {"Link": f'<{request.path}?{query}>; rel="next"'}


def not_modified(digest: str, request: RecordedRequest) -> PlannedResponse | None:
    """304 when If-None-Match names the digest, else None."""
    names = [name.strip() for name in request.headers.get("If-None-Match", "").split(",")]
    bare = {name.removeprefix("W/").strip('"') for name in names}
    if digest not in bare and "*" not in bare:
        return None
    headers = {"Docker-Content-Digest": digest, "ETag": f'"{digest}"'}
    response = PlannedResponse.of(304, InMemory(b""), headers)
    response.length = None  # a length in a 304 would be that of the content
    return response


def accepts(request: RecordedRequest, media_type: str) -> bool:
    """Whether any Accept line names the media type, or everything."""
    lines = request.headers.getall("Accept", [])
    named = {entry.partition(";")[0].strip() for line in lines for entry in line.split(",")}
    return media_type in named or "*/*" in named
