"""Tags, referrers and the catalog: lists, in pages."""

from __future__ import annotations

from typing import Any, TypeVar
from urllib.parse import urlencode

from aiohttp import web
from aiohttp.web_request import BaseRequest

from regmirror.errors import PaginationInvalid
from regmirror.listings import Listings
from regmirror.manifests import OCI_INDEX
from regmirror.names import Digest, Repository
from regmirror.routing import DOCKER_HUB
from regmirror.v2.exchange import Exchange
from regmirror.v2.responses import json_response, warning_header

T = TypeVar("T")
MOST = 10_000  # entries in one page
CATALOG_PAGE = 100  # entries in a page of the catalog whose size nobody chose


class Listing:
    """The handlers of ``tags/list``, ``referrers`` and ``_catalog``."""

    def __init__(self, listings: Listings, default_upstream: str) -> None:
        self._listings, self._default = listings, default_upstream

    async def tags(self, exchange: Exchange, repository: Repository, written_name: str) -> web.StreamResponse:
        """``{"name": …, "tags": […]}``; ``name`` as the client wrote it."""
        request = exchange.request
        limit = _limit(request)
        answer = await self._listings.tags(repository)
        exchange.answer(answer.outcome)
        page, headers = _page(request, answer.content, limit)
        if answer.warning:
            headers["Warning"] = warning_header(answer.warning)
        return json_response({"name": written_name, "tags": page}, headers)

    async def referrers(
        self, exchange: Exchange, repository: Repository, digest: Digest
    ) -> web.StreamResponse:
        """An index of descriptors, filtered here whatever the upstream can do."""
        answer = await self._listings.referrers(repository, digest)
        exchange.answer(answer.outcome)
        wanted = exchange.request.query.getall("artifactType", [])
        found, headers = answer.content, {}
        if wanted:
            found = [item for item in found if item.get("artifactType") in wanted]
            headers["OCI-Filters-Applied"] = "artifactType"
        if answer.warning:
            headers["Warning"] = warning_header(answer.warning)
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found}
        return json_response(document, headers, OCI_INDEX)

    async def catalog(self, exchange: Exchange, upstream: str | None) -> web.StreamResponse:
        """What is stored, each as it can be pulled from here."""
        request = exchange.request
        limit = _limit(request)
        stored = await self._listings.repositories()
        names = sorted(
            item.name if upstream or item.upstream == self._default else str(item)
            for item in stored
            if upstream in (None, item.upstream)
        )
        page, headers = _page(request, names, CATALOG_PAGE if limit is None else limit)
        return json_response({"repositories": page}, headers)


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


def _page(request: BaseRequest, items: list[str], limit: int | None) -> tuple[list[str], dict[str, str]]:
    """The entries after ``last``, and a ``Link`` to the rest, spelled as this request was."""
    last = request.query.get("last")
    if last is not None:
        items = [item for item in items if item > last]
    if limit is None or len(items) <= limit:
        return items, {}
    page = items[:limit]
    if not page:
        return [], {}
    query: list[tuple[str, Any]] = [("last", page[-1]), ("n", limit)]
    query += [("ns", ns) for ns in request.query.getall("ns", [])[:1]]
    return page, {"Link": f'<{request.rel_url.raw_path}?{urlencode(query)}>; rel="next"'}
