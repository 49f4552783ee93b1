"""Tags, referrers and the catalog: lists, in pages."""

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
from regmirror.oci.paths import DOCKER_HUB
from regmirror.offload import run_by_size
from regmirror.v2.request import RequestContext
from regmirror.v2.responses import COMMON, json_response, warning_header, whole_response

MOST = 10_000  # entries in one page
_INDEX: Final = b'{"schemaVersion":2,"mediaType":"%s","manifests":[%%s]}' % OCI_INDEX.encode()
CATALOG_PAGE = 100  # entries in a page of the catalog whose size nobody chose


class Lists:
    """The handlers of ``tags/list``, ``referrers`` and ``_catalog``."""

    def __init__(self, listings: Listings, default_upstream: str) -> None:
        self._listings, self._default = listings, default_upstream

    async def tags(
        self, context: RequestContext, repository: Repository, written_name: str
    ) -> web.StreamResponse:
        """``{"name": …, "tags": […]}``; ``name`` as the client wrote it."""
        request = context.request
        limit = _limit(request)
        answer = await self._listings.list_tags(repository, request.query.get("last"), limit)
        context.answer(answer.cache_status)
        headers = _link(request, answer.content.last, limit)
        if answer.warning:
            headers["Warning"] = warning_header(answer.warning)
        name = json.dumps(written_name).encode()
        return _response(b'{"name":%s,"tags":[%s]}', (name, answer.content.elements), headers)

    async def referrers(
        self, context: RequestContext, repository: Repository, digest: Digest
    ) -> web.StreamResponse:
        """An index of descriptors, filtered here whatever the upstream can do."""
        answer = await self._listings.list_referrers(repository, digest)
        context.answer(answer.cache_status)
        wanted = context.request.query.getall("artifactType", [])
        found, headers = answer.content, {}
        if wanted:
            found = await run_by_size(len(found.text), found.select, "artifactType", wanted)
            headers["OCI-Filters-Applied"] = "artifactType"
        if answer.warning:
            headers["Warning"] = warning_header(answer.warning)
        return _response(_INDEX, (found.page().elements,), headers, OCI_INDEX)

    async def catalog(self, context: RequestContext, upstream: str | None) -> web.StreamResponse:
        """What is stored, each as it can be pulled from here."""
        request = context.request
        limit = _limit(request)
        limit = CATALOG_PAGE if limit is None else limit
        wanted = CatalogPage(limit + 1, self._default, upstream, request.query.get("last"))
        names = await self._listings.list_repositories(wanted)
        page, last = names[:limit], names[limit - 1] if 0 < limit < len(names) else None
        return json_response({"repositories": page}, _link(request, last, limit))


def shown_name(repository: Repository) -> str:
    """A repository as people write it: Docker Hub's own images without ``library/``."""
    if repository.upstream == DOCKER_HUB:
        return repository.name.removeprefix("library/")
    return str(repository)


def _limit(request: BaseRequest) -> int | None:
    text = request.query.get("n")
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise PaginationInvalid(f"n must be a whole number that is not negative, not {text[:50]!r}")
    return min(int(text), MOST)


def _link(request: BaseRequest, last: str | None, limit: int | None) -> dict[str, str]:
    """A ``Link`` to what follows ``last``, spelled as this request was; none if nothing does."""
    if last is None:
        return {}
    query: list[tuple[str, Any]] = [("last", last)]
    query += [("n", limit)] if limit is not None else []
    query += [("ns", ns) for ns in request.query.getall("ns", [])[:1]]
    return {"Link": f'<{request.rel_url.raw_path}?{urlencode(query)}>; rel="next"'}


def _response(
    document: bytes, parts: tuple[bytes, ...], headers: dict[str, str], media_type: str = "application/json"
) -> web.Response:
    """JSON of which most is text already."""
    return whole_response(document % parts, {**COMMON, **headers, "Content-Type": media_type})
