"""The HTTP server: what it answers, and what hostile or lazy peers get."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from proxy.errors import DeviceError
from proxy.web import http
from proxy.web.http import HttpRequest, HttpResponse, HttpServer


async def _page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(http.HTTPStatus.OK, b"body of " + request.path.encode())


async def _broken(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("a bug")


@pytest_asyncio.fixture
async def port() -> AsyncIterator[int]:
    server = HttpServer({"/page": _page, "/broken": _broken})
    await server.start("127.0.0.1", 0)
    yield server.port
    await server.stop()


async def ask(port: int, request: str) -> tuple[int, dict[str, str], bytes]:
    """Status, header fields and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.encode("latin-1"))
    answer = await reader.read()
    writer.close()
    if not answer:
        return 0, {}, b""
    head, _, body = answer.partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    headers = dict(field.split(": ", 1) for field in fields)
    assert line.startswith("HTTP/1.1 ")
    return int(line.split()[1]), headers, body


def get(path: str, host: str = "127.0.0.1", method: str = "GET") -> str:
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"


async def test_a_page(port: int) -> None:
    status, headers, body = await ask(port, get("/page?with=query"))
    assert (status, body) == (200, b"body of /page")
    assert headers["Content-Length"] == str(len(body))
    assert headers["Connection"] == "close"
    status, headers, body = await ask(port, get("/page", method="HEAD"))
    assert (status, headers["Content-Length"], body) == (200, "13", b"")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("/"), 404),
        (get("/page/../page"), 404),
        (get("/page", method="POST"), 405),
        (get("/page", method="DELETE"), 405),
        ("nonsense\r\n\r\n", 400),
        ("GET /page HTTP/2\r\n\r\n", 400),
        ("GET /page HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + "x" * 9000 + "\r\n\r\n", 431),
    ],
)
async def test_what_is_refused(port: int, request_: str, status: int) -> None:
    assert (await ask(port, request_))[0] == status


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9180", 200),
        ("[::1]:9180", 200),
        ("localhost:9180", 200),
        ("LOCALHOST", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example:9180", 421),
        ("localhost.evil.example", 421),
        ("", 421),
        ("[", 421),
    ],
)
async def test_only_an_address_or_localhost_may_be_asked(port: int, host: str, status: int) -> None:
    """A name whose owner points it here would make us the origin of his page."""
    assert (await ask(port, get("/page", host)))[0] == status


async def test_a_page_that_fails_takes_its_connection_alone(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await ask(port, get("/broken")))[0] == 500
    assert "a bug" in caplog.text
    assert (await ask(port, get("/page")))[0] == 200


async def test_who_says_nothing_is_dropped(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "READ_TIMEOUT", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /page HTT")
    assert await _ended(reader)
    writer.close()
    assert (await ask(port, get("/page")))[0] == 200


async def test_no_more_connections_than_there_is_room_for(port: int) -> None:
    lazy = [await asyncio.open_connection("127.0.0.1", port) for _ in range(http.MAX_CONNECTIONS)]
    assert (await ask(port, ""))[0] == 503
    for _, writer in lazy:
        writer.close()
        await writer.wait_closed()
    status = 503
    for _ in range(500):
        status = (await ask(port, get("/page")))[0]
        if status == 200:
            break
        await asyncio.sleep(0.01)
    assert status == 200


async def test_stopping_drops_who_is_there() -> None:
    server = HttpServer({"/page": _page})
    await server.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET")
    await asyncio.sleep(0.05)
    await server.stop()
    assert await _ended(reader)
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", server.port)


async def test_a_port_that_is_taken_is_named(port: int) -> None:
    with pytest.raises(DeviceError, match=f"metrics.listen: 127.0.0.1:{port}: Address already"):
        await HttpServer({}).start("127.0.0.1", port)


async def test_an_address_may_come_later() -> None:
    server = HttpServer({"/page": _page})
    await server.start("192.0.2.77", 0)
    await server.stop()


async def _ended(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True
