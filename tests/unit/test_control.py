"""The control socket: requests, replies, limits; and the notice to systemd."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from proxy.control import notify
from proxy.control.client import ControlClient, ControlError, NoDaemonError
from proxy.control.schema import MAX_LINE
from proxy.control.server import ControlServer
from proxy.errors import DeviceError

STATUS = {"role": "proxy", "uplinks": [], "connections": []}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "proxy.sock"


def fail(request: object) -> object:
    raise ValueError("no such thing")


@pytest_asyncio.fixture
async def server(path: Path) -> AsyncIterator[ControlServer]:
    commands = {"echo": lambda request: request["text"], "fail": fail, "odd": lambda _: object()}
    server = ControlServer(path, lambda: STATUS, commands)
    await server.start()
    yield server
    await server.stop()


async def ask(path: Path, ask_it: Callable[[ControlClient], Any]) -> Any:
    def work() -> Any:
        with ControlClient(path) as client:
            return ask_it(client)

    return await asyncio.to_thread(work)


async def exchange(path: Path, *lines: bytes) -> list[dict[str, Any]]:
    """The replies to raw lines, in order."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"".join(lines))
    writer.write_eof()
    replies = [json.loads(line) async for line in reader]
    writer.close()
    return replies


async def test_status_is_what_the_source_gives(server: ControlServer, path: Path) -> None:
    assert await ask(path, lambda client: client.status()) == STATUS


async def test_one_connection_serves_many_requests(server: ControlServer, path: Path) -> None:
    def several(client: ControlClient) -> list[object]:
        return [client.request("echo", text=text) for text in ("a", "b\n", "\u2028")]

    assert await ask(path, several) == ["a", "b\n", "\u2028"]


async def test_replies_have_the_id_and_a_version(server: ControlServer, path: Path) -> None:
    (reply,) = await exchange(path, b'{"id": "x7", "command": "status"}\n')
    assert reply == {"version": 1, "id": "x7", "result": STATUS}


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"status\n", "bad-request"),
        (b"\n", "bad-request"),
        (b"[]\n", "bad-request"),
        (b"{}\n", "bad-request"),
        (b'{"command": 3}\n', "bad-request"),
        (b'{"command": "status", "version": 2}\n', "bad-request"),
        (b"\xff\xfe\n", "bad-request"),
        (b"[" * 60000 + b"\n", "bad-request"),
        (b'{"command": "reboot"}\n', "unknown-command"),
        (b'{"command": "fail"}\n', "failed"),
        (b'{"command": "odd"}\n', "failed"),
        (b'{"command": "echo"}\n', "failed"),
    ],
)
async def test_bad_requests_get_an_error_and_the_next_is_served(
    server: ControlServer, path: Path, line: bytes, code: str
) -> None:
    error, good = await exchange(path, line, b'{"command": "status"}\n')
    assert error["error"]["code"] == code
    assert good["result"] == STATUS


async def test_a_line_beyond_the_limit_ends_the_connection(
    server: ControlServer, path: Path
) -> None:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"x" * (MAX_LINE + 10))
    reply = json.loads(await reader.readline())
    assert reply["error"]["code"] == "too-long"
    with contextlib.suppress(ConnectionResetError):  # as there is more than was read
        assert await reader.read() == b""
    writer.close()


async def test_half_a_request_is_no_request(server: ControlServer, path: Path) -> None:
    assert await exchange(path, b'{"command": "status"}') == []


async def test_the_socket_is_for_user_and_group_alone(server: ControlServer, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750


async def test_a_big_status_arrives_whole(path: Path) -> None:
    big = {"connections": [{"id": number, "text": "x" * 1000} for number in range(3000)]}
    server = ControlServer(path, lambda: big)
    await server.start()
    assert await ask(path, lambda client: client.status()) == big
    await server.stop()


async def test_stopping_removes_the_socket_and_drops_peers(path: Path) -> None:
    server = ControlServer(path, lambda: STATUS)
    await server.start()
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b'{"command": "status"}\n')
    assert await reader.readline()
    await server.stop()
    assert await reader.read() == b""
    writer.close()
    assert not path.exists()


async def test_a_socket_left_by_a_killed_daemon_is_taken_over(path: Path) -> None:
    path.parent.mkdir()
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    server = ControlServer(path, lambda: STATUS)
    await server.start()
    assert await ask(path, lambda client: client.status()) == STATUS
    await server.stop()


async def test_a_running_daemon_keeps_its_socket(server: ControlServer, path: Path) -> None:
    with pytest.raises(DeviceError, match="another daemon"):
        await ControlServer(path, lambda: STATUS).start()
    assert await ask(path, lambda client: client.status()) == STATUS


async def test_what_is_no_socket_is_not_removed(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(DeviceError, match="something else"):
        await ControlServer(path, lambda: STATUS).start()
    assert path.read_text() == "precious"


async def test_an_impossible_place_is_a_device_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DeviceError, match=r"control socket .*/file/x\.sock"):
        await ControlServer(tmp_path / "file" / "x.sock", lambda: STATUS).start()


async def test_too_many_peers_are_turned_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.control.server.MAX_PEERS", 2)
    server = ControlServer(path, lambda: STATUS)
    await server.start()
    streams = []
    for _ in range(2):
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b'{"command": "status"}\n')
        assert "result" in json.loads(await reader.readline())
        streams.append(writer)
    reader, writer = await asyncio.open_unix_connection(str(path))
    assert json.loads(await reader.readline())["error"]["code"] == "busy"
    for stream in (*streams, writer):
        stream.close()
    await server.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
async def test_another_user_is_refused_even_if_he_can_open_the_socket(
    server: ControlServer, path: Path
) -> None:
    path.chmod(0o666)
    for directory in (path.parent, *path.parent.parents[:-2]):
        directory.chmod(0o755)
    program = (
        "import os, socket, sys; os.setgroups([]); os.setgid(12345); os.setuid(12345)\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        's.sendall(b\'{"command": "status"}\\n\'); print(s.recv(100))\n'
    )
    process = await asyncio.create_subprocess_exec(
        "/usr/bin/env", "python3", "-c", program, str(path), stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert b"result" not in output
    assert output.strip() == b"b''" or b"ConnectionResetError" in output or b"Broken" in output


def test_no_daemon_is_an_error_of_its_own(path: Path) -> None:
    with pytest.raises(NoDaemonError):
        ControlClient(path)
    path.parent.mkdir()
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    with pytest.raises(NoDaemonError):
        ControlClient(path)


def listen(path: Path) -> socket.socket:
    path.parent.mkdir()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    return listener


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "hung up"),
        (b'{"version": 1', "hung up"),
        (b"hello\n", "not JSON"),
        (b"[]\n", "another version"),
        (b'{"version": 9, "result": {}}\n', "another version"),
        (b'{"version": 1, "result": 3}\n', "not an object"),
        (b'{"version": 1, "error": {"code": "busy", "message": "later"}}\n', "later"),
    ],
)
def test_a_daemon_that_answers_badly_is_an_error(path: Path, answer: bytes, message: str) -> None:
    with listen(path) as listener:
        client = ControlClient(path)
        peer, _ = listener.accept()
        with peer:
            peer.sendall(answer)
            peer.shutdown(socket.SHUT_WR)
            with pytest.raises(ControlError, match=message):
                client.status()
        client.close()


def test_a_daemon_that_says_nothing_is_an_error(path: Path) -> None:
    with listen(path), pytest.raises(ControlError, match="does not answer"):
        ControlClient(path, timeout=0.05).status()


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = f"@mptcp-proxy-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name[1:] if abstract else name)
        systemd.settimeout(5)
        assert notify.ready("ready proxy")
        assert notify.stopping()
        assert systemd.recv(1000) == b"READY=1\nSTATUS=ready proxy\n"
        assert systemd.recv(1000) == b"STOPPING=1\n"


@pytest.mark.parametrize("address", ["", "/nonexistent/notify", "relative", "vsock:2:1"])
def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not notify.ready()
