"""Operating: is the process alive, can it work, what are its figures."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from aiohttp import web
from aiohttp.web_request import BaseRequest
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy.exc import SQLAlchemyError

from regmirror.blobs.staging import Staging
from regmirror.metadata.store import MetadataStore
from regmirror.metadata.totals import Totals
from regmirror.singleflight import SingleFlight
from regmirror.telemetry.metrics import Metrics
from regmirror.v2.responses import SERVER, whole_response

DATABASE_MAX: Final = 2.0  # seconds to wait for the database
PROBE_AGE: Final = 5.0  # seconds for which the result of a write probe is repeated


class Ops:
    """The handlers of ``/healthz``, ``/readyz`` and ``/metrics``; none of them asks upstream."""

    def __init__(
        self,
        storage: Path,
        metadata: MetadataStore,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._storage, self._metadata, self._metrics = storage, metadata, metrics
        self._staging, self._clock = Staging(storage / "staging"), clock
        self._probing, self._probed_at, self._obstacle = asyncio.Lock(), float("-inf"), ""
        self._thread = ThreadPoolExecutor(1, "probe")
        self._pings: SingleFlight[str, None] = SingleFlight()
        self._figures: SingleFlight[str, Totals] = SingleFlight()
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
            async with asyncio.timeout(DATABASE_MAX):
                await self._pings.do("ping", self._metadata.ping)
        except TimeoutError:
            return _text("the database does not answer\n", 503)
        except SQLAlchemyError as error:
            return _text(f"the database cannot be read: {getattr(error, 'orig', error)}\n", 503)
        obstacle = await self._find_write_error()
        return _text(f"ready\nnothing can be stored: {obstacle}\n" if obstacle else "ready\n")

    async def _find_write_error(self) -> str:
        """Try to write: once in ``PROBE_AGE`` seconds for all requests, and never twice at once."""
        async with self._probing:
            if self._clock() >= self._probed_at + PROBE_AGE:
                loop = asyncio.get_running_loop()
                self._obstacle = await loop.run_in_executor(self._thread, self._staging.find_write_error)
                self._probed_at = self._clock()
            return self._obstacle

    async def metrics(self, request: BaseRequest) -> web.Response:
        """Prometheus text format."""
        try:
            async with asyncio.timeout(DATABASE_MAX):
                found = await self._figures.do("figures", self._metadata.figures)
            size = found.blob_bytes + found.manifest_bytes
            self._metrics.set_store(found.blobs, size, found.manifests)
        except (SQLAlchemyError, TimeoutError):
            pass  # the figures of the last time; /readyz says what is wrong
        headers = {"Content-Type": CONTENT_TYPE_LATEST, "Server": SERVER}
        return whole_response(self._metrics.render(), headers)


def _text(text: str, status: int = 200) -> web.Response:
    return web.Response(text=text, status=status, headers={"Server": SERVER})
