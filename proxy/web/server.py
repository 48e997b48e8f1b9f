"""The daemon's HTTP listener, as ``[metrics]`` says."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from proxy.config import MetricsConfig
from proxy.control.metrics import Report
from proxy.errors import DeviceError
from proxy.web.http import HttpRequest, HttpResponse, HttpServer

log = logging.getLogger(__name__)

# Whoever asks more often than that gets what the last one got: reading costs.
_FRESH = 0.2
# Seconds from one reading of the round-trip times to the next, and the share of the time that it
# may take: with very many connections it is done less often.
_SAMPLE_PAUSE = 1.0
_SAMPLE_SHARE = 0.01


class MetricsServer:
    """Tells what ``report`` has; its argument: whether it shall read the round-trip times too."""

    def __init__(self, report: Callable[[bool], Awaitable[Report]]) -> None:
        self._report = report
        self._server: HttpServer | None = None
        self._listen: tuple[str, int] | None = None
        self._sampling: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._text = b""
        self._read_at = -math.inf

    @property
    def port(self) -> int | None:
        """Where it listens; None: nowhere."""
        return self._server.port if self._server is not None else None

    async def configure(self, config: MetricsConfig) -> None:
        """Listen where ``config`` says, if anywhere; DeviceError if that cannot be, and then all
        is as it was."""
        if config.listen == self._listen:
            return
        before = self._listen
        await self.stop()
        try:
            await self._start(config.listen)
        except DeviceError:
            await self._start(before)
            raise

    async def stop(self) -> None:
        """Stop listening."""
        if self._sampling is not None:
            self._sampling.cancel()
            await asyncio.gather(self._sampling, return_exceptions=True)
            self._sampling = None
        if self._server is not None:
            await self._server.stop()
            self._server = None
        self._listen = None

    async def _start(self, listen: tuple[str, int] | None) -> None:
        if listen is None:
            return
        server = HttpServer({"/metrics": self._metrics})
        await server.start(*listen)
        self._server, self._listen = server, listen
        self._sampling = asyncio.create_task(self._sample())

    async def _metrics(self, request: HttpRequest) -> HttpResponse:
        # Late: who has no [metrics] does not load the library.
        from proxy.web.exposition import CONTENT_TYPE, exposition

        async with self._lock:
            if time.monotonic() - self._read_at >= _FRESH:
                self._text = exposition(await self._report(False))
                self._read_at = time.monotonic()
        return HttpResponse(HTTPStatus.OK, self._text, CONTENT_TYPE)

    async def _sample(self) -> None:
        pause = _SAMPLE_PAUSE
        while True:
            await asyncio.sleep(pause)
            begin = time.monotonic()
            try:
                await self._report(True)
            except Exception:  # as a page: counting must not take the daemon down
                log.exception("cannot read the round-trip times")
            pause = max(_SAMPLE_PAUSE, (time.monotonic() - begin) / _SAMPLE_SHARE)
