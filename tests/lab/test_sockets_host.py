"""What is ours alone: the host of sockets, its uplinks, asyncio, and how a program ends."""

from __future__ import annotations

import asyncio
import errno
import select
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from hashlib import sha256

import pytest

from proxy.errors import ConfigError
from proxy.mptcp.connection import MptcpConnection
from proxy.sockets import IPPROTO_MPTCP, MPTCP_TCPINFO, SOL_MPTCP, Host, Socket, connection
from tests.lab.conftest import FIBRE
from tests.lab.engine_peer import pattern
from tests.lab.kernel import ROOT, counters
from tests.lab.namespaces import Namespace
from tests.lab.net_host import assert_unchanged, snapshot
from tests.lab.socket_makers import PATIENCE, Peer, opened, read_all, refused_with
from tests.lab.sockets import until_blocked
from tests.lab.topology import (
    GATEWAY4,
    Configurator,
    Topology,
    next_hop,
    topology,
    uplink_address,
    uplink_address6,
)
from tests.lab.waiting import wait_for

pytestmark = pytest.mark.lab("nft")
PORT = 7100
TCP = socket.IPPROTO_TCP


@pytest.fixture(scope="module")
def lab() -> Iterator[Topology]:
    """Two uplinks of 50 Mbit/s with 20 ms."""
    with topology(FIBRE, FIBRE) as network:
        network.gateway.run("ip", "mptcp", "limits", "set", "subflows", "8")
        network.gateway.run("ip", "mptcp", "limits", "set", "add_addr_accepted", "8")
        yield network


@pytest.fixture(scope="module")
def host(lab: Topology) -> Iterator[Host]:
    with opened(lab) as host:
        yield host


@pytest.fixture
def server(lab: Topology) -> Iterator[socket.socket]:
    with lab.gateway.listen(GATEWAY4, PORT, protocol=IPPROTO_MPTCP) as listener:
        listener.settimeout(PATIENCE)
        yield listener


def subflows(sock: Socket) -> int:
    """How many there are, as the header of an answer says."""
    return int.from_bytes(sock.getsockopt(SOL_MPTCP, MPTCP_TCPINFO, 16)[4:8], sys.byteorder)


def connected(host: Host, server: socket.socket) -> tuple[Socket, socket.socket]:
    sock = host.create_connection(server.getsockname(), PATIENCE)
    peer, _ = server.accept()
    peer.settimeout(PATIENCE)
    begin(sock, peer)
    return sock, peer


def begin(sock: Socket, peer: socket.socket) -> None:
    """Let the first byte pass: before it nobody may join (RFC 8684 §3.1)."""
    sock.sendall(b"x")
    assert peer.recv(1) == b"x"


def test_both_uplinks_carry_a_connection(lab: Topology, host: Host, server: socket.socket) -> None:
    data = pattern(8_000_000)
    sock, peer = connected(host, server)
    wait_for(lambda: subflows(sock) == 2, "the second subflow", within=PATIENCE)
    before = [lab.link(index).statistics()["up"]["bytes_in"] for index in lab.indices]
    reading = Peer(read_all, peer)
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
    assert sha256(reading.result()).digest() == sha256(data).digest()
    after = [lab.link(index).statistics()["up"]["bytes_in"] for index in lab.indices]
    assert min(a - b for a, b in zip(after, before, strict=True)) > 500_000
    sock.close()
    peer.close()


def test_a_connection_outlives_the_uplink_that_it_began_on(
    lab: Topology, host: Host, server: socket.socket
) -> None:
    data = pattern(4_000_000)
    sock, peer = connected(host, server)
    wait_for(lambda: subflows(sock) == 2, "the second subflow", within=PATIENCE)
    reading = Peer(read_all, peer)
    lab.link(1).cut()
    try:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        assert sha256(reading.result()).digest() == sha256(data).digest()
    finally:
        lab.link(1).restore()
    sock.close()
    peer.close()


def test_an_uplink_that_goes_and_returns_is_followed(
    lab: Topology, host: Host, server: socket.socket
) -> None:
    sock, peer = connected(host, server)
    wait_for(lambda: subflows(sock) == 2, "the second subflow", within=PATIENCE)
    lab.proxy.run("ip", "link", "set", "u1", "down")
    try:
        wait_for(lambda: subflows(sock) == 1, "its subflow is gone", within=PATIENCE)
        other, its_peer = connected(host, server)
        assert other.getsockname()[0] == uplink_address(2)
        other.close()
        its_peer.close()
    finally:
        with Configurator(lab.proxy) as proxy:
            proxy.up("u1", f"{uplink_address6(1)}/64")  # went with the link, as the routes
        lab.direct_via(1)
    wait_for(lambda: subflows(sock) == 2, "it is joined again", within=PATIENCE)
    begin(sock, peer)
    sock.close()
    peer.close()


def test_options_reach_later_subflows_and_single_uplinks(
    lab: Topology, host: Host, server: socket.socket
) -> None:
    with host.socket() as sock:
        sock.settimeout(PATIENCE)
        sock.setsockopt(TCP, socket.TCP_CONGESTION, b"reno")
        sock.setsockopt_on("u2", TCP, socket.TCP_CONGESTION, b"bbr")
        sock.connect(server.getsockname())
        peer, _ = server.accept()
        begin(sock, peer)

        def controls() -> dict[str | None, str]:
            assert sock._connection is not None
            stream = sock._connection.stream
            assert isinstance(stream, MptcpConnection)
            return {
                subflow.uplink: subflow.congestion.name
                for subflow in stream.subflows
                if subflow.fully_established
            }

        wait_for(lambda: len(host.call(controls)) == 2, "both subflows", within=PATIENCE)
        assert host.call(controls) == {"u1": "reno", "u2": "bbr"}
        sock.setsockopt(TCP, socket.TCP_CONGESTION, b"cubic")
        assert host.call(controls) == {"u1": "cubic", "u2": "bbr"}
        assert refused_with(sock.setsockopt_on, "u9", TCP, socket.TCP_KEEPIDLE, 9) == errno.EINVAL
        peer.close()


def test_a_listener_announces_its_other_uplinks(lab: Topology, host: Host) -> None:
    with host.create_server(("", 0)) as listener:
        listener.settimeout(PATIENCE)
        port = listener.getsockname()[1]
        with lab.gateway.connect(uplink_address(1), port, protocol=IPPROTO_MPTCP) as peer:
            sock, _ = listener.accept()
            wait_for(lambda: subflows(sock) == 2, "the announced address joined", within=PATIENCE)
            wait_for(lambda: counters(lab.gateway)["MPJoinSynAckRx"] > 0, "its answer")
            peer.sendall(b"x")
            assert sock.recv(1) == b"x"
            sock.close()


def test_a_flood_of_syns_does_not_shut_others_out(lab: Topology, host: Host) -> None:
    """Beyond the handshakes that are kept, the answers to SYNs are cookies."""
    with host.create_server((uplink_address(1), 0), backlog=4) as listener:
        listener.settimeout(PATIENCE)
        target = listener.getsockname()
        half_open = []
        rule = "type filter hook output priority 0; tcp flags & (syn|ack) == ack drop"
        lab.gateway.run("nft", f"table inet mute {{ chain out {{ {rule}; }}; }}")
        try:
            for _ in range(20):
                half_open.append(lab.gateway.connect(*target, timeout=PATIENCE))
        finally:
            lab.gateway.run("nft", "delete table inet mute")
        for proto in (0, IPPROTO_MPTCP):
            with lab.gateway.connect(*target, protocol=proto, timeout=PATIENCE) as peer:
                peer.sendall(b"hello")
                while True:
                    sock, name = listener.accept()
                    if name == peer.getsockname():
                        break
                    sock.close()
                sock.settimeout(PATIENCE)
                assert sock.recv(5) == b"hello"
                sock.close()
        for end in half_open:
            end.close()


def test_asyncio_serves_and_connects(lab: Topology, host: Host, server: socket.socket) -> None:
    data = pattern(1_000_000)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(1 << 16):
            writer.write(chunk)
            await writer.drain()
        writer.close()

    def call(port: int) -> bytes:
        with lab.gateway.connect(uplink_address(2), port, protocol=IPPROTO_MPTCP) as sock:
            sock.settimeout(PATIENCE)
            reading = Peer(read_all, sock)
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            return bytes(reading.result())

    def answer() -> None:
        sock, _ = server.accept()
        with sock:
            sock.sendall(sock.recv(100))

    async def work() -> None:
        async with await host.start_server(echo, "", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            assert await asyncio.to_thread(call, port) == data
        assert listening.sockets == ()
        peer = Peer(answer)
        reader, writer = await host.open_connection(*server.getsockname())
        assert writer.get_extra_info("peername") == server.getsockname()
        writer.write(b"question")
        assert await reader.read() == b"question"
        writer.close()
        await writer.wait_closed()
        peer.result()
        with pytest.raises(ConnectionRefusedError):
            await host.open_connection(GATEWAY4, PORT + 1)

    asyncio.run(work())


def test_an_asyncio_stream_tells_of_a_reset(host: Host, server: socket.socket) -> None:
    async def work() -> None:
        reader, writer = await host.open_connection(*server.getsockname())
        peer, _ = server.accept()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()

    asyncio.run(work())


def test_sockets_of_mptcp_need_mptcp(lab: Topology) -> None:
    with opened(lab, mptcp={"enabled": False}) as host:
        assert refused_with(host.socket) == errno.ENOPROTOOPT
        host.socket(proto=0).close()


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"tcp\.min_rto"):
        Host.open(["u1"], tcp={"min_rto": 99})
    with pytest.raises(ConfigError, match=r"uplink\[0\]\.interface"):
        Host.open([{"name": "fibre"}])


def test_no_uplink_leads_there(lab: Topology) -> None:
    with lab.proxy.entered():
        host = Host.open(["none"])
    with host, host.socket() as sock:
        with pytest.raises(OSError, match='there is no interface "none"') as caught:
            sock.connect((GATEWAY4, PORT))
        assert caught.value.errno == errno.ENETUNREACH


def test_closing_the_host_wakes_everybody(lab: Topology, server: socket.socket) -> None:
    with opened(lab) as host:
        sock, peer = connected(host, server)
        listener = host.create_server(("", 0))
        waiting = [Peer(refused_with, sock.recv, 1), Peer(refused_with, listener.accept)]
        peer.settimeout(PATIENCE)
    assert waiting[0].result() == errno.ECONNABORTED
    assert waiting[1].result() == errno.EINVAL
    assert peer.recv(1) == b""
    assert refused_with(host.socket().connect, server.getsockname()) == errno.ENETDOWN
    for end in (sock, peer, listener):
        end.close()


def test_an_orphan_whose_peer_takes_nothing_is_reset(
    host: Host, server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_ORPHAN", 0.5)
    sock, peer = connected(host, server)
    assert until_blocked(sock, 1.0, 200_000_000) > 0
    sock.close()
    # Not a byte is read before: the reset alone wakes the poll.
    poll = select.poll()
    poll.register(peer, select.POLLERR)
    assert poll.poll(PATIENCE * 1000)
    peer.close()


def test_a_lost_device_ends_all_sockets(lab: Topology, server: socket.socket) -> None:
    with opened(lab) as host:
        sock, peer = connected(host, server)
        waiting = Peer(refused_with, sock.recv, 1)
        lab.proxy.run("ip", "link", "delete", host.config.tun.name)
        assert waiting.result() == errno.ECONNABORTED
        assert refused_with(host.create_connection, server.getsockname()) == errno.ENETDOWN
        host.close(0.0)
        sock.close()
        peer.close()


# -- programs ----------------------------------------------------------------------------------

PREAMBLE = f"""
    import os, signal, sys
    from proxy import sockets
    sockets.start([{{"interface": "u1", "next_hop": "{next_hop(1)}"}}])
"""


def program(namespace: Namespace, text: str, *words: str) -> subprocess.Popen[bytes]:
    """Starts a program of some lines after ``sockets.start``."""
    lines = textwrap.dedent(PREAMBLE) + textwrap.dedent(text)
    return namespace.start(sys.executable, "-c", lines, *words, cwd=ROOT)


def ended(process: subprocess.Popen[bytes]) -> str:
    output, _ = process.communicate(timeout=PATIENCE)
    return output.decode()


@pytest.fixture
def untouched(lab: Topology) -> Iterator[None]:
    """The host is afterwards as it was before."""
    before = snapshot(lab.proxy)
    yield
    assert_unchanged(lab.proxy, before)


@pytest.mark.usefixtures("untouched")
def test_a_program_that_just_ends_delivers_what_it_sent(
    lab: Topology, server: socket.socket
) -> None:
    process = program(
        lab.proxy,
        """
        sock = sockets.create_connection((sys.argv[1], int(sys.argv[2])))
        sock.sendall(bytes(3_000_000))
        """,
        *map(str, server.getsockname()),
    )
    peer, _ = server.accept()
    peer.settimeout(PATIENCE)
    assert read_all(peer) == bytes(3_000_000)
    peer.close()
    assert (ended(process), process.returncode) == ("", 0)


@pytest.mark.usefixtures("untouched")
def test_what_a_killed_program_left_the_next_one_removes(lab: Topology) -> None:
    killed = program(
        lab.proxy,
        """
        server = sockets.create_server(("", 7777))
        os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    ended(killed)
    assert killed.returncode == -signal.SIGKILL
    assert "dport 7777" in lab.proxy.run("nft", "list", "ruleset").stdout
    other = program(lab.proxy, "sockets.create_server(('', 7777)).close()")
    assert (ended(other), other.returncode) == ("", 0)


def test_programs_have_hosts_beside_each_other(lab: Topology, host: Host) -> None:
    with opened(lab) as other:
        assert host.config.tun.name != other.config.tun.name
        with other.create_server((uplink_address(1), 0)) as listener:
            with host.socket() as sock:
                code = refused_with(sock.bind, listener.getsockname())
            assert code == errno.EADDRINUSE
            with lab.gateway.connect(*listener.getsockname(), timeout=PATIENCE):
                listener.settimeout(PATIENCE)
                listener.accept()[0].close()
