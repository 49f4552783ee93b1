"""The handlers of lists, in pages: tags, referrers and the catalog."""

from __future__ import annotations

import json
from typing import Any, Final
from urllib.parse import urlencode

from aiohttp import web
from aiohttp.web_request import BaseRequest

from regmirror.errors import PaginationInvalid
from regmirror.metadata.list_queries import CatalogPage
from regmirror.mirror.listings import Listings
from regmirror.oci.manifests import OCI_INDEX
from regmirror.oci.names import Digest, Repository
from regmirror.offload import run_by_size
from regmirror.v2.request import RequestContext
from regmirror.v2.responses import COMMON, json_response, warning_header, whole_response

PAGE_MAX: Final = 10_000  # entries
_INDEX: Final = b'{"schemaVersion":2,"mediaType":"%s","manifests":[%%s]}' % OCI_INDEX.encode()
CATALOG_PAGE: Final = 100  # entries in a page of the catalog, unless the request has ``n``


class Lists:
    """The handlers of ``tags/list``, ``referrers`` and ``_catalog``."""

    def __init__(self, listings: Listings, default_upstream: str) -> None:
        self._listings, self._default = listings, default_upstream

    async def tags(
        self, context: RequestContext, repository: Repository, written_name: str
    ) -> web.StreamResponse:
        """``{"name": …, "tags": […]}``, with the name that the client wrote."""
        request = context.request
        limit = _limit(request)
        result = await self._listings.list_tags(repository, request.query.get("last"), limit)
        context.record(result.cache_status)
        headers = _link(request, result.content.last, limit)
        if result.warning:
            headers["Warning"] = warning_header(result.warning)
        name = json.dumps(written_name).encode()
        return _response(b'{"name":%s,"tags":[%s]}', (name, result.content.elements), headers)

    async def referrers(
        self, context: RequestContext, repository: Repository, digest: Digest
    ) -> web.StreamResponse:
        """An index of descriptors. ``artifactType`` is applied here: not every upstream filters."""
        result = await self._listings.list_referrers(repository, digest)
        context.record(result.cache_status)
        types = context.request.query.getall("artifactType", [])
        found, headers = result.content, {}
        if types:
            found = await run_by_size(len(found.text), found.select, "artifactType", types)
            headers["OCI-Filters-Applied"] = "artifactType"
        if result.warning:
            headers["Warning"] = warning_header(result.warning)
        return _response(_INDEX, (found.page().elements,), headers, OCI_INDEX)

    async def catalog(self, context: RequestContext, upstream: str | None) -> web.StreamResponse:
        """The cached repositories, by the names under which this server serves them."""
        request = context.request
        limit = _limit(request)
        limit = CATALOG_PAGE if limit is None else limit
        page = CatalogPage(limit + 1, self._default, upstream, request.query.get("last"))
        names = await self._listings.list_repositories(page)
        last = names[limit - 1] if 0 < limit < len(names) else None
        return json_response({"repositories": names[:limit]}, _link(request, last, limit))


def _limit(request: BaseRequest) -> int | None:
    text = request.query.get("n")
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise PaginationInvalid(f"n must be a whole number that is not negative, not {text[:50]!r}")
    return min(int(text), PAGE_MAX)


def _link(request: BaseRequest, last: str | None, limit: int | None) -> dict[str, str]:
    """The ``Link`` to the next page, on the path of this request; nothing if ``last`` ends the list."""
    if last is None:
        return {}
    query: list[tuple[str, Any]] = [("last", last)]
    query += [("n", limit)] if limit is not None else []
    query += [("ns", ns) for ns in request.query.getall("ns", [])[:1]]
    return {"Link": f'<{request.rel_url.raw_path}?{urlencode(query)}>; rel="next"'}


def _response(
    document: bytes, parts: tuple[bytes, ...], headers: dict[str, str], media_type: str = "application/json"
) -> web.Response:
    """``document`` with its parts, which are JSON texts already, filled in."""
    return whole_response(document % parts, {**COMMON, **headers, "Content-Type": media_type})
