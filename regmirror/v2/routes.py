"""The one entry of the registry API: which handler answers which path.

/v2/                                         is this a registry?
/v2/_catalog?n=&last=                        what is stored
/v2/library/alpine/manifests/3.20            GET, HEAD
/v2/library/alpine/blobs/sha256:…            GET, HEAD
/v2/library/alpine/tags/list?n=&last=
/v2/library/alpine/referrers/sha256:…
/v2/ghcr.io/org/app/…    /ghcr.io/v2/org/app/…    /v2/org/app/…?ns=ghcr.io
"""

from __future__ import annotations

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
from regmirror.v2.responses import Internal, abort, error_response, json_response

_KINDS = {"manifest": "manifest", "blob": "blob", "tags": "tags", "referrers": "referrers"}


class Routes:
    """The request handler of everything that is not operating (``server/ops.py``)."""

    def __init__(self, table: UpstreamTable, pull: Pull, listing: Lists, emit: Emit) -> None:
        self._table, self._pull, self._listing, self._emit = table, pull, listing, emit

    async def serve(self, request: BaseRequest) -> web.StreamResponse:
        """Answer, whatever happens; tell the listeners once how it went."""
        context = RequestContext(request)
        try:
            response = await self._answer(context)
            context.status = response.status
            return response
        except RegistryError as error:
            return self._refuse(context, error)
        except ConnectionError as error:
            context.error = f"client left: {error}"
            abort(request)  # raised instead, it would be logged as an error for every early leaver
            return web.StreamResponse(status=context.status or 499)
        except OSError as error:
            return self._refuse(context, Internal(f"the store failed: {error.strerror}"))
        except Exception as error:  # a defect of ours: server.py logs and answers it
            context.status = context.status or Internal.status
            context.error = f"{type(error).__name__} in the mirror"
            raise
        finally:
            self._emit(context.event())

    def _refuse(self, context: RequestContext, error: RegistryError) -> web.StreamResponse:
        """Say what is wrong; after the first byte only the connection's end can say it."""
        context.error = error.message
        if context.request.writer.output_size > 0:
            abort(context.request)
            return web.StreamResponse(status=context.status or error.status)
        context.result, context.status, context.cache_status = "error", error.status, ""
        response = error_response(error)
        response.headers.update(context.headers)
        return response

    async def _answer(self, context: RequestContext) -> web.StreamResponse:
        request = context.request
        path = split(decode(request.rel_url.raw_path))
        if path is None:
            raise NameUnknown("nothing is served here; the registry is at /v2/")
        context.kind = _KINDS.get(path.endpoint, "")  # type: ignore[assignment]
        with tracking_reads() as doubt:
            try:
                response = await self._dispatch(context, path)
            except RegistryError as error:
                if doubt.has_failed and error.status == 404 and not error.is_definite:
                    raise MetadataUnavailable from error  # it may well be stored
                raise
        if not response.prepared:
            response.headers.update(context.headers)
        return response

    async def _dispatch(self, context: RequestContext, path: Path) -> web.StreamResponse:
        request = context.request
        ns = request.query.getall("ns", []) if request.query_string else []
        if path.endpoint in ("ping", "catalog"):
            _only_reading(request)
            upstream = self._table.resolve_upstream(prefix=path.prefix, ns=ns)
            if path.endpoint == "catalog":
                return await self._listing.catalog(context, upstream)
            return json_response({}, {})
        repository = self._table.resolve(path.name, prefix=path.prefix, ns=ns)
        context.upstream = repository.upstream
        if namespace := self._table.namespace(path.name, prefix=path.prefix, ns=ns):
            context.headers["OCI-Namespace"] = namespace  # specification, "Registry Proxying"
        _only_reading(request)
        match path.endpoint:
            case "manifest":
                reference = parse_reference(path.argument)
                return await self._pull.manifest(context, repository, reference)
            case "blob":
                return await self._pull.blob(context, repository, Digest(path.argument))
            case "tags":
                return await self._listing.tags(context, repository, path.name)
            case "referrers":
                return await self._listing.referrers(context, repository, Digest(path.argument))
        raise Unsupported(f"{repository} is mirrored: it can be pulled, not pushed")


def _only_reading(request: BaseRequest) -> None:
    if request.method not in ("GET", "HEAD"):
        raise Unsupported(f"{request.method[:20]} is not supported: this is a mirror")
