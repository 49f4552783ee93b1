"""Operating: is the process alive, can it work, what are its figures."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aiohttp import web
from aiohttp.web_request import BaseRequest
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy.exc import SQLAlchemyError

from regmirror.blobs.staging import Staging
from regmirror.metadata.store import MetadataStore
from regmirror.metrics import Metrics
from regmirror.singleflight import SingleFlight
from regmirror.v2.responses import SERVER, whole_response


class Ops:
    """The handlers of ``/healthz``, ``/readyz`` and ``/metrics``; none of them asks upstream."""

    def __init__(self, storage: Path, metadata: MetadataStore, metrics: Metrics) -> None:
        self._storage, self._metadata, self._metrics = storage, metadata, metrics
        self._probes: SingleFlight[str, str] = SingleFlight()
        self._thread = ThreadPoolExecutor(1, "probe")
        self.handlers = {"/healthz": self.healthz, "/readyz": self.readyz, "/metrics": self.metrics}

    async def healthz(self, request: BaseRequest) -> web.Response:
        """200 while the process serves."""
        return _text("ok\n")

    async def readyz(self, request: BaseRequest) -> web.Response:
        """200, or 503 with the reason why store or database cannot be used.

        A second line says why nothing can be stored, if that is so: pulls go on without it.
        """
        if not os.access(self._storage / "blobs", os.R_OK | os.X_OK):
            return _text(f"the store at {self._storage} cannot be read\n", 503)
        try:
            await self._metadata.ping()
        except SQLAlchemyError as error:
            return _text(f"the database cannot be read: {getattr(error, 'orig', error)}\n", 503)
        obstacle = await self._probes.do("staging", self._find_obstacle)
        return _text(f"ready\nnothing can be stored: {obstacle}\n" if obstacle else "ready\n")

    async def _find_obstacle(self) -> str:
        staging = Staging(self._storage / "staging")
        return await asyncio.get_running_loop().run_in_executor(self._thread, staging.find_obstacle)

    async def metrics(self, request: BaseRequest) -> web.Response:
        """Prometheus text format."""
        try:
            totals = await self._metadata.totals()
            self._metrics.set_store(totals.blobs, totals.blob_bytes, totals.manifests)
        except SQLAlchemyError:
            pass  # the figures of the last time; /readyz says what is wrong
        headers = {"Content-Type": CONTENT_TYPE_LATEST, "Server": SERVER}
        return whole_response(self._metrics.render(), headers)


def _text(text: str, status: int = 200) -> web.Response:
    return web.Response(text=text, status=status, headers={"Server": SERVER})
