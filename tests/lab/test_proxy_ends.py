"""How connections begin and end is what the far end did: refusal, RST, half close, silence."""

from __future__ import annotations

import errno
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from tests.lab.conftest import needs_boxes
from tests.lab.servers import digest_reply, echo, read_all, serving
from tests.lab.sockets import echo_through, exchange, reset
from tests.lab.topology import GATEWAY4, GATEWAY6, SERVER4, SERVER6, UNREACHABLE4, Topology
from tests.lab.waiting import wait_for

if TYPE_CHECKING:
    from tests.lab.daemons import Boxes

BOTH_FAMILIES = pytest.mark.parametrize("address", [SERVER4, SERVER6], ids=["v4", "v6"])


@BOTH_FAMILIES
def test_refused_connection_is_refused(lab: Topology, home: Boxes, address: str) -> None:
    with pytest.raises(ConnectionRefusedError):
        lab.client.connect(address, 9)


@pytest.mark.lab("nft")
def test_connection_is_answered_only_when_the_server_answered(lab: Topology, home: Boxes) -> None:
    """A server that swallows SYNs leaves the client waiting, not connected."""
    rules = (
        "table inet swallow { chain in { type filter hook input priority 0; tcp dport 7 drop; }; }"
    )
    lab.server.run("nft", rules)
    try:
        with pytest.raises(TimeoutError):
            lab.client.connect(SERVER4, 7, timeout=2.5)
    finally:
        lab.server.run("nft", "delete", "table", "inet", "swallow")


def test_unreachable_server_is_reported(lab: Topology, home: Boxes) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what matters
        lab.client.connect(UNREACHABLE4, 80, timeout=30)
    assert caught.value.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT)


@BOTH_FAMILIES
def test_half_close_by_the_client(lab: Topology, home: Boxes, address: str) -> None:
    with serving(lab.server, digest_reply, address=address) as server:
        answer = exchange(lab.client, address, server.port, b"a" * 300_000)
        assert answer.decode() in map(str, server.results)


def test_half_close_by_the_server(lab: Topology, home: Boxes) -> None:
    def speak_then_listen(sock: socket.socket) -> bytes:
        sock.sendall(b"my last words")
        sock.shutdown(socket.SHUT_WR)
        return read_all(sock)

    with (
        serving(lab.server, speak_then_listen) as server,
        lab.client.connect(SERVER4, server.port) as sock,
    ):
        assert read_all(sock) == b"my last words"
        for _ in range(20):
            sock.sendall(b"b" * 20_000)
        sock.shutdown(socket.SHUT_WR)
        wait_for(lambda: server.results, "the server heard the end")
        assert server.results == [b"b" * 400_000]


def test_connection_without_a_byte_closes(lab: Topology, home: Boxes) -> None:
    with serving(lab.server, read_all) as server:
        lab.client.connect(SERVER4, server.port).close()
        wait_for(lambda: server.results, "the server saw the end")
        assert server.results == [b""]


def test_client_reset_reaches_the_server(lab: Topology, home: Boxes) -> None:
    with serving(lab.server, echo) as server:
        sock = lab.client.connect(SERVER4, server.port)
        assert echo_through(sock, 5000)
        reset(sock)
        wait_for(lambda: server.errors, "the server saw the reset")
        assert isinstance(server.errors[0], ConnectionResetError)


def test_server_reset_reaches_the_client(lab: Topology, home: Boxes) -> None:
    def answer_and_reset(sock: socket.socket) -> None:
        sock.recv(100)
        reset(sock)

    with (
        serving(lab.server, answer_and_reset) as server,
        lab.client.connect(SERVER4, server.port) as sock,
    ):
        sock.sendall(b"hello")
        with pytest.raises(ConnectionResetError):
            sock.recv(100)


def test_data_before_a_close_arrives(lab: Topology, home: Boxes) -> None:
    """A server that sends and closes at once is heard to the end."""
    data = bytes(range(256)) * 4000

    def burst(sock: socket.socket) -> None:
        sock.sendall(data)

    with serving(lab.server, burst) as server:
        for _ in range(5):
            with lab.client.connect(SERVER4, server.port) as sock:
                assert read_all(sock) == data


def test_slow_reader_loses_nothing(lab: Topology, home: Boxes) -> None:
    """The server pauses until the client is blocked, then reads it all."""
    resume, total = threading.Event(), 40_000_000

    def late_reader(sock: socket.socket) -> int:
        resume.wait(60)
        return len(read_all(sock))

    with (
        serving(lab.server, late_reader) as server,
        lab.client.connect(SERVER4, server.port) as sock,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        sock.settimeout(2)
        sent, chunk = 0, bytes(1 << 16)
        while sent < total:
            try:
                sent += sock.send(chunk[: total - sent])
            except TimeoutError:
                break
        print(f"taken before it blocked: {sent}")
        resume.set()
        sock.settimeout(60)
        while sent < total:
            sent += sock.send(chunk[: total - sent])
        sock.shutdown(socket.SHUT_WR)
        wait_for(lambda: server.results, "the server read all", within=60)
        assert server.results == [total]


@needs_boxes
@pytest.mark.parametrize(
    "target", [GATEWAY4, GATEWAY6, "172.31.1.2", "10.1.0.1", "169.254.169.254"]
)
def test_forbidden_destination_is_refused(lab: Topology, home: Boxes, target: str) -> None:
    """What the gateway's egress rules do not allow fails at once and reaches nobody."""
    listen_on = "::" if ":" in target else "0.0.0.0"
    with serving(lab.gateway, echo, address=listen_on, port=8099) as server:
        with pytest.raises(OSError) as caught:  # noqa: PT011 - any error but a time-out
            lab.client.connect(target, server.port, timeout=15)
        assert not isinstance(caught.value, TimeoutError)
        assert server.peers == []


@needs_boxes
def test_forbidden_port_is_refused(lab: Topology, home: Boxes) -> None:
    with serving(lab.server, echo, port=25) as server:
        with pytest.raises(OSError):  # noqa: PT011
            lab.client.connect(SERVER4, 25, timeout=15)
        assert server.peers == []


def test_urgent_data_arrives_in_its_place(lab: Topology, home: Boxes) -> None:
    # RFC 6093 §4: delivered in line; that it is urgent is not passed on.
    def read_in_line(sock: socket.socket) -> bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        return read_all(sock)

    with (
        serving(lab.server, read_in_line) as server,
        lab.client.connect(SERVER4, server.port) as sock,
    ):
        sock.sendall(b"before ")
        sock.send(b"urgent!", socket.MSG_OOB)
        sock.sendall(b" after")
        sock.shutdown(socket.SHUT_WR)
        wait_for(lambda: server.results, "the server heard the end")
        assert server.results == [b"before urgent! after"]
