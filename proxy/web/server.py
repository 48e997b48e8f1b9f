"""The daemon's HTTP listener, as ``[metrics]`` says."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from importlib.resources import files

from proxy.config import MetricsConfig
from proxy.control.metrics import Report
from proxy.errors import DeviceError
from proxy.web.http import HttpRequest, HttpResponse, HttpServer, Page
from proxy.web.watch import Watch

log = logging.getLogger(__name__)

# Whoever asks more often than that gets what the last one got: reading costs.
_FRESH = 0.2
# Nothing from elsewhere, no code but our own file's, in nobody's frame.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
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
        self._watch = Watch()
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
        pages = {"/": _asset("index.html", "text/html")}
        pages |= {"/page.css": _asset("page.css", "text/css")}
        pages |= {"/page.js": _asset("page.js", "text/javascript")}
        pages |= {"/status.json": self._status, "/history.json": self._history}
        server = HttpServer({**pages, "/metrics": self._metrics})
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

    async def _status(self, request: HttpRequest) -> HttpResponse:
        return _json(self._watch.status())

    async def _history(self, request: HttpRequest) -> HttpResponse:
        return _json(self._watch.history())

    async def _sample(self) -> None:
        pause = _SAMPLE_PAUSE
        while True:
            await asyncio.sleep(pause)
            begin = time.monotonic()
            try:
                report = await self._report(True)
                self._watch.add(report, time.monotonic(), time.time())
            except Exception:  # as a page: counting must not take the daemon down
                log.exception("cannot read what was counted")
            pause = max(_SAMPLE_PAUSE, (time.monotonic() - begin) / _SAMPLE_SHARE)


def _asset(name: str, kind: str) -> Page:
    """A file of the status page."""
    body = files("proxy.web").joinpath("page", name).read_bytes()
    response = HttpResponse(HTTPStatus.OK, body, f"{kind}; charset=utf-8", _PAGE_HEADERS)

    async def page(request: HttpRequest) -> HttpResponse:
        return response

    return page


def _json(value: object) -> HttpResponse:
    body = json.dumps(value, separators=(",", ":")).encode()
    return HttpResponse(HTTPStatus.OK, body, "application/json", _PAGE_HEADERS)
