"""Operations: ``/healthz``, ``/readyz`` and ``/metrics``. None of them contacts an upstream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from aiohttp import web
from aiohttp.web_request import BaseRequest
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy.exc import SQLAlchemyError

from regmirror.metadata.store import MetadataStore
from regmirror.metadata.totals import Totals
from regmirror.singleflight import SingleFlight
from regmirror.telemetry.metrics import Metrics
from regmirror.v2.responses import SERVER, whole_response
from regmirror.v2.routes import Handler

DATABASE_MAX: Final = 2.0  # seconds to wait for the database
PROBE_MAX_AGE: Final = 5.0  # seconds for which the result of a write probe is repeated


class Ops:
    """The handlers of operations.

    ``find_read_error`` and ``find_write_error`` probe the store: they return why it cannot be read
    or written at the moment, or an empty text. Writing waits for the disk and runs in a thread.
    """

    def __init__(
        self,
        *,
        find_read_error: Callable[[], str],
        find_write_error: Callable[[], str],
        metadata: MetadataStore,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find_read_error, self._find_write_error = find_read_error, find_write_error
        self._metadata, self._metrics, self._clock = metadata, metrics, clock
        self._probing, self._probed_at, self._write_error = asyncio.Lock(), float("-inf"), ""
        self._thread = ThreadPoolExecutor(1, "probe")
        self._pings: SingleFlight[str, None] = SingleFlight()
        self._totals: SingleFlight[str, Totals] = SingleFlight()
        self.handlers: Mapping[str, Handler] = {
            "/healthz": self.healthz,
            "/readyz": self.readyz,
            "/metrics": self.metrics,
        }

    async def healthz(self, _: BaseRequest) -> web.Response:
        """200 while the process serves."""
        return _text("ok\n")

    async def readyz(self, _: BaseRequest) -> web.Response:
        """200; 503 with the reason if the store or the database cannot be read.

        A second line of a 200 is the reason why nothing can be stored: pulls work without it.
        """
        if error := self._find_read_error():
            return _text(f"{error}\n", 503)
        try:
            async with asyncio.timeout(DATABASE_MAX):
                await self._pings.do("ping", self._metadata.ping)
        except TimeoutError:
            return _text("the database does not respond\n", 503)
        except SQLAlchemyError as error:
            return _text(f"the database cannot be read: {getattr(error, 'orig', error)}\n", 503)
        write_error = await self._probe_writing()
        return _text(f"ready\nnothing can be stored: {write_error}\n" if write_error else "ready\n")

    async def _probe_writing(self) -> str:
        """The error of the last write probe; there is one probe at a time, one in PROBE_MAX_AGE seconds."""
        async with self._probing:
            if self._clock() >= self._probed_at + PROBE_MAX_AGE:
                loop = asyncio.get_running_loop()
                self._write_error = await loop.run_in_executor(self._thread, self._find_write_error)
                self._probed_at = self._clock()
            return self._write_error

    async def metrics(self, _: BaseRequest) -> web.Response:
        """All metrics in the text format of Prometheus."""
        try:
            async with asyncio.timeout(DATABASE_MAX):
                totals = await self._totals.do("totals", self._metadata.content_totals)
            size = totals.blob_bytes + totals.manifest_bytes
            self._metrics.set_store(totals.blobs, size, totals.manifests)
        except (SQLAlchemyError, TimeoutError):
            pass  # the totals of the last time are repeated; /readyz reports the error
        headers = {"Content-Type": CONTENT_TYPE_LATEST, "Server": SERVER}
        return whole_response(self._metrics.render(), headers)

    def close(self) -> None:
        """End the thread of the write probe, without waiting for it."""
        self._thread.shutdown(wait=False)


def _text(text: str, status: int = 200) -> web.Response:
    return web.Response(text=text, status=status, headers={"Server": SERVER})
