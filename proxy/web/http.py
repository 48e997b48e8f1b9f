"""A small HTTP/1.1 server for a few pages, beside a data path that must not wait for it.

One request a connection (RFC 9112 §9.6: ``Connection: close``), few connections, short times.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import urlsplit

from proxy.errors import DeviceError

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 16
MAX_HEAD = 8192  # bytes of request line and header fields
READ_TIMEOUT = 5.0
WRITE_TIMEOUT = 10.0
# Of include/uapi/linux/in.h and in6.h; Python has no names for them.
_IP_FREEBIND = 15
_IPV6_FREEBIND = 78
_HEADERS = {
    "Cache-Control": "no-store",
    "Connection": "close",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """``headers`` by name in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """What is answered; ``kind`` is the Content-Type."""

    status: HTTPStatus
    body: bytes
    kind: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def plain(cls, status: HTTPStatus, text: str, **headers: str) -> HttpResponse:
        """A line of text."""
        return cls(status, f"{text}\n".encode(), headers=headers)


class HttpError(Exception):
    """The request gets ``response``."""

    def __init__(self, response: HttpResponse) -> None:
        super().__init__(response.status.phrase)
        self.response = response


Page = Callable[[HttpRequest], Awaitable[HttpResponse]]
"""Answers GET, and HEAD, whose body is left out."""


class HttpServer:
    """Serves ``pages`` by path."""

    def __init__(self, pages: Mapping[str, Page]) -> None:
        self._pages = pages
        self.port = 0
        """Where it listens."""
        self._server: asyncio.Server | None = None
        self._peers: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> None:
        """Listen, on any port if ``port`` is 0; DeviceError if that cannot be."""
        try:
            listener = _bind(host, port)
        except OSError as error:
            place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            raise DeviceError(f"metrics.listen: {place}: {error.strerror}") from error
        self.port = listener.getsockname()[1]
        self._server = await asyncio.start_server(self._on_peer, sock=listener, limit=MAX_HEAD)

    async def stop(self) -> None:
        """Stop listening, and drop who is there."""
        if self._server is None:
            return
        self._server.close()
        peers = list(self._peers)
        for peer in peers:
            peer.cancel()
        await asyncio.gather(*peers, return_exceptions=True)
        self._server = None

    async def _on_peer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._peers.add(task)
        try:
            response, body = await self._answer(reader, len(self._peers) > MAX_CONNECTIONS)
            writer.write(_head(response))
            if body:
                writer.write(response.body)
            async with asyncio.timeout(WRITE_TIMEOUT):
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, EOFError, TimeoutError):
            writer.transport.abort()  # it went away, says nothing or does not read
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._peers.discard(task)

    async def _answer(self, reader: asyncio.StreamReader, full: bool) -> tuple[HttpResponse, bool]:
        """The response, and whether its body is sent."""
        if full:
            text = "too many connections"
            return HttpResponse.plain(HTTPStatus.SERVICE_UNAVAILABLE, text), True
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                request = await _read_request(reader)
            return await self._serve(request), request.method != "HEAD"
        except HttpError as error:
            return error.response, True

    async def _serve(self, request: HttpRequest) -> HttpResponse:
        page = self._page(request)
        try:
            return await page(request)
        except Exception:  # a page must not take the daemon down
            log.exception("cannot answer %s", request.path)
            text = "this is a bug; the log has more"
            return HttpResponse.plain(HTTPStatus.INTERNAL_SERVER_ERROR, text)

    def _page(self, request: HttpRequest) -> Page:
        _check_host(request)
        page = self._pages.get(request.path)
        if page is None:
            text = f"there is {', '.join(self._pages)}"
            raise HttpError(HttpResponse.plain(HTTPStatus.NOT_FOUND, text))
        if request.method not in ("GET", "HEAD"):
            refusal = HttpResponse.plain(
                HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD", Allow="GET, HEAD"
            )
            raise HttpError(refusal)
        return page


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # An address of the LAN may come later than the daemon.
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        else:
            listener.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        listener.bind((host, port))
        listener.listen(MAX_CONNECTIONS)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


async def _read_request(reader: asyncio.StreamReader) -> HttpRequest:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as error:
        text = f"a request may have {MAX_HEAD} bytes"
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        raise HttpError(HttpResponse.plain(status, text)) from error
    line, *fields = head[:-4].decode("latin-1").split("\r\n")
    words = line.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise HttpError(HttpResponse.plain(HTTPStatus.BAD_REQUEST, "not an HTTP/1.1 request"))
    headers: dict[str, str] = {}
    for text in fields:
        name, _, value = text.partition(":")
        headers[name.lower()] = value.strip()
    return HttpRequest(words[0], words[1].partition("?")[0], headers)


def _check_host(request: HttpRequest) -> None:
    """Only by an address or as localhost may we be asked.

    A web page whose name its owner lets point to us (DNS rebinding) would pass for our own origin
    in a browser; the name then stands in Host.
    """
    try:
        name = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
        if name != "localhost":
            ip_address(name)
    except ValueError as error:
        text = "ask by the IP address, or as localhost"
        raise HttpError(HttpResponse.plain(HTTPStatus.MISDIRECTED_REQUEST, text)) from error


def _head(response: HttpResponse) -> bytes:
    status = response.status
    headers = {
        "Content-Type": response.kind,
        "Content-Length": str(len(response.body)),
        **_HEADERS,
        **response.headers,
    }
    lines = [f"HTTP/1.1 {status.value} {status.phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join((*lines, "", "")).encode()
