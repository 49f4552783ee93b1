"""The routes of the registry API: which handler serves which path.

/v2/                                         is this a registry?
/v2/_catalog?n=&last=                        the cached repositories
/v2/library/alpine/manifests/3.20            GET, HEAD
/v2/library/alpine/blobs/sha256:…            GET, HEAD
/v2/library/alpine/tags/list?n=&last=
/v2/library/alpine/referrers/sha256:…
/v2/ghcr.io/org/app/…    /ghcr.io/v2/org/app/…    /v2/org/app/…?ns=ghcr.io
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from aiohttp.web_request import BaseRequest

from regmirror.errors import MetadataUnavailable, NameUnknown, RegistryError, Unsupported
from regmirror.metadata.bounded_access import tracking_reads
from regmirror.oci.names import Digest, parse_reference
from regmirror.oci.paths import Path, UpstreamTable, decode, split
from regmirror.telemetry.events import Emit
from regmirror.v2.lists import Lists
from regmirror.v2.pull import Pull
from regmirror.v2.request import RequestContext
from regmirror.v2.response_cache import ResponseCache
from regmirror.v2.responses import Internal, abort, error_response, json_response

Handler = Callable[[BaseRequest], Awaitable[web.StreamResponse]]
_KINDS = {"manifest": "manifest", "blob": "blob", "tags": "tags", "referrers": "referrers"}


class Routes:
    """The request handler of one configuration.

    ``operations`` serve exact paths outside the registry API, such as ``/healthz``; they emit no
    event. ``response_cache`` belongs to these routes, since another configuration may respond
    differently.
    """

    def __init__(
        self,
        *,
        table: UpstreamTable,
        pull: Pull,
        lists: Lists,
        response_cache: ResponseCache,
        operations: Mapping[str, Handler],
        emit: Emit,
    ) -> None:
        self.response_cache = response_cache
        self._table, self._pull, self._lists = table, pull, lists
        self._operations, self._emit = operations, emit
        self._in_progress = 0
        self._drained = asyncio.Event()

    async def serve(self, request: BaseRequest) -> web.StreamResponse:
        """Respond, also to a request that fails; emit one event when the response has ended."""
        operation = self._operations.get(request.rel_url.raw_path)
        if operation is not None and request.method in ("GET", "HEAD"):
            return await operation(request)
        context = RequestContext(request)
        self._in_progress += 1
        try:
            response = await self._serve(context)
            context.status = response.status
            return response
        except RegistryError as error:
            return self._reject(context, error)
        except ConnectionError as error:
            context.error = f"client left: {error}"
            abort(request)  # raised instead, it would be logged as an error for every early leaver
            context.status = context.status or 499
            return web.StreamResponse(status=context.status)
        except OSError as error:
            return self._reject(context, Internal(f"the store failed: {error.strerror}"))
        except Exception as error:  # a defect of this program: the connection logs it and responds
            context.status = context.status or Internal.status
            context.error = f"{type(error).__name__} in the mirror"
            raise
        finally:
            self._emit(context.event())
            self._in_progress -= 1
            if not self._in_progress:
                self._drained.set()

    async def drain(self) -> None:
        """Wait until no request is in progress; for routes that receive no new ones."""
        while self._in_progress:
            self._drained.clear()
            await self._drained.wait()

    def _reject(self, context: RequestContext, error: RegistryError) -> web.StreamResponse:
        """The error as a response; once a response has begun, close the connection instead."""
        context.error = error.message
        if context.request.writer.output_size > 0:
            abort(context.request)
            context.status = context.status or error.status
            return web.StreamResponse(status=context.status)
        context.result, context.status, context.cache_status = "error", error.status, ""
        response = error_response(error)
        response.headers.update(context.headers)
        return response

    async def _serve(self, context: RequestContext) -> web.StreamResponse:
        path = split(decode(context.request.rel_url.raw_path))
        if path is None:
            raise NameUnknown("nothing is served here; the registry is at /v2/")
        context.kind = _KINDS.get(path.endpoint, "")  # type: ignore[assignment]
        with tracking_reads() as doubt:
            try:
                response = await self._dispatch(context, path)
            except RegistryError as error:
                if doubt.has_failed and error.status == 404 and not error.is_definite:
                    raise MetadataUnavailable from error  # the content may be stored
                raise
        if not response.prepared:
            response.headers.update(context.headers)
        return response

    async def _dispatch(self, context: RequestContext, path: Path) -> web.StreamResponse:
        request = context.request
        ns = request.query.getall("ns", []) if request.query_string else []
        if path.endpoint in ("ping", "catalog"):
            _require_read(request)
            upstream = self._table.resolve_upstream(prefix=path.prefix, ns=ns)
            if path.endpoint == "catalog":
                return await self._lists.catalog(context, upstream)
            return json_response({}, {})
        repository = self._table.resolve(path.name, prefix=path.prefix, ns=ns)
        context.upstream = repository.upstream
        if ns and (namespace := self._table.namespace(path.name, prefix=path.prefix, ns=ns)):
            context.headers["OCI-Namespace"] = namespace  # specification, "Registry Proxying"
        if path.endpoint != "upload":
            _require_read(request)
        match path.endpoint:
            case "manifest":
                reference = parse_reference(path.argument)
                return await self._pull.manifest(context, repository, reference)
            case "blob":
                return await self._pull.blob(context, repository, Digest(path.argument))
            case "tags":
                return await self._lists.tags(context, repository, path.name)
            case "referrers":
                return await self._lists.referrers(context, repository, Digest(path.argument))
        raise Unsupported(f"{repository} is mirrored: it can be pulled, not pushed")


class CurrentRoutes:
    """The routes that serve the next request; a reload assigns others to ``routes``."""

    __slots__ = ("routes",)

    def __init__(self, routes: Routes) -> None:
        self.routes = routes

    def serve(self, request: BaseRequest) -> Awaitable[web.StreamResponse]:
        """Respond by the routes of this moment, to the end of the response."""
        return self.routes.serve(request)


def _require_read(request: BaseRequest) -> None:
    if request.method not in ("GET", "HEAD"):
        raise Unsupported(f"{request.method[:20]} is not supported: this is a mirror")
