"""Sockets behave as the kernel's: each test runs against both."""

from __future__ import annotations

import ctypes
import errno
import select
import socket
import struct
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import pytest

from proxy.mptcp.info import (
    FullInfo,
    MptcpInfo,
    SubflowAddrs,
    SubflowData,
    SubflowInfo,
    TcpInfo,
    sockaddr,
)
from proxy.sockets import (
    IPPROTO_MPTCP,
    MPTCP_FULL_INFO,
    MPTCP_INFO,
    MPTCP_SUBFLOW_ADDRS,
    MPTCP_TCPINFO,
    SOL_MPTCP,
    TCP_IS_MPTCP,
)
from tests.lab.engine_peer import pattern
from tests.lab.socket_makers import (
    PATIENCE,
    EngineMaker,
    KernelMaker,
    Maker,
    Peer,
    dropped,
    opened,
    read_all,
    refused_with,
)
from tests.lab.sockets import reset, until_blocked
from tests.lab.topology import (
    GATEWAY4,
    GATEWAY6,
    Topology,
    topology,
    uplink_address,
    uplink_address6,
)
from tests.lab.waiting import wait_for

pytestmark = pytest.mark.lab("nft")
PORT = 7000
TCP = socket.IPPROTO_TCP
FAMILIES = pytest.mark.parametrize("six", [False, True], ids=["v4", "v6"])


@pytest.fixture(scope="module")
def lab() -> Iterator[Topology]:
    with topology(None, None) as network:
        yield network


@pytest.fixture(scope="module", params=["kernel", "engine"])
def maker(request: pytest.FixtureRequest, lab: Topology) -> Iterator[Maker]:
    if request.param == "kernel":
        yield KernelMaker(lab.proxy)
        return
    with opened(lab) as host:
        yield EngineMaker(host)


@pytest.fixture
def server(lab: Topology) -> Iterator[socket.socket]:
    """Where the sockets under test connect to: the kernel's MPTCP."""
    with lab.gateway.listen(GATEWAY4, PORT, protocol=IPPROTO_MPTCP) as listener:
        listener.settimeout(PATIENCE)
        yield listener


def accepted(listener: Any) -> Any:
    sock, _ = listener.accept()
    sock.settimeout(PATIENCE)
    return sock


def connected(maker: Maker, server: socket.socket) -> tuple[Any, socket.socket]:
    sock = maker.socket(server.family)
    sock.settimeout(PATIENCE)
    sock.connect(server.getsockname()[:2])
    return sock, accepted(server)


def listening(maker: Maker, backlog: int = 16, six: bool = False, **options: Any) -> Any:
    sock = maker.socket(socket.AF_INET6 if six else socket.AF_INET, **options)
    sock.settimeout(PATIENCE)
    sock.bind((uplink_address6(1) if six else uplink_address(1), 0))
    sock.listen(backlog)
    return sock


def code_of(sock: Any) -> int:
    return int(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))


# -- making ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "kind", "proto", "code"),
    [
        (socket.AF_INET, socket.SOCK_DGRAM, IPPROTO_MPTCP, errno.EPROTONOSUPPORT),
        (socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP + 1, errno.EINVAL),
        (socket.AF_INET6, socket.SOCK_STREAM, 999, errno.EINVAL),
        (socket.AF_INET, socket.SOCK_SEQPACKET, IPPROTO_MPTCP, errno.ESOCKTNOSUPPORT),
        (99, socket.SOCK_STREAM, IPPROTO_MPTCP, errno.EAFNOSUPPORT),
        (socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP, 0),
        (socket.AF_INET6, socket.SOCK_STREAM, IPPROTO_MPTCP, 0),
        (socket.AF_INET, socket.SOCK_STREAM, 0, 0),
    ],
)
def test_what_cannot_be_made(maker: Maker, family: int, kind: int, proto: int, code: int) -> None:
    assert refused_with(lambda: maker.socket(family, kind, proto).close()) == code


def test_an_unconnected_socket_says_so(maker: Maker) -> None:
    with maker.socket() as sock:
        assert refused_with(sock.recv, 1) == errno.ENOTCONN
        assert refused_with(sock.send, b"x") == errno.EPIPE
        assert refused_with(sock.shutdown, socket.SHUT_WR) == errno.ENOTCONN
        assert refused_with(sock.getpeername) == errno.ENOTCONN
        assert refused_with(sock.accept) == errno.EINVAL
        assert sock.getsockname() == ("0.0.0.0", 0)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == IPPROTO_MPTCP
        assert sock.getsockopt(TCP, TCP_IS_MPTCP) == 1
        assert sock.getsockopt(TCP, socket.TCP_INFO, 104)[0] == 7  # CLOSE


# -- connecting --------------------------------------------------------------------------------


@FAMILIES
def test_half_close_leaves_the_other_direction_open(maker: Maker, lab: Topology, six: bool) -> None:
    address = GATEWAY6 if six else GATEWAY4
    with lab.gateway.listen(address, PORT, protocol=IPPROTO_MPTCP) as listener:
        listener.settimeout(PATIENCE)
        sock, peer = connected(maker, listener)
        assert sock.getsockopt(TCP, TCP_IS_MPTCP) == peer.getsockopt(TCP, TCP_IS_MPTCP) == 1
        assert sock.getpeername() == peer.getsockname()
        assert sock.getsockname()[0] == (uplink_address6(1) if six else uplink_address(1))
        sock.sendall(b"question")
        sock.shutdown(socket.SHUT_WR)
        assert read_all(peer) == b"question"
        assert refused_with(sock.send, b"more") == errno.EPIPE
        peer.sendall(b"answer")
        peer.close()
        assert read_all(sock) == b"answer"
        sock.close()


def test_connecting_falls_back_to_plain_tcp(maker: Maker, lab: Topology) -> None:
    with lab.gateway.listen(GATEWAY4, PORT) as listener:
        listener.settimeout(PATIENCE)
        sock, peer = connected(maker, listener)
        sock.sendall(b"plain")
        assert peer.recv(10) == b"plain"
        assert sock.getsockopt(TCP, TCP_IS_MPTCP) == 0
        for option in (MPTCP_INFO, MPTCP_TCPINFO, MPTCP_SUBFLOW_ADDRS, MPTCP_FULL_INFO):
            assert refused_with(sock.getsockopt, SOL_MPTCP, option, 512) == errno.EOPNOTSUPP
        peer.close()
        assert sock.recv(10) == b""
        sock.close()


def test_a_refused_connection_can_be_tried_again(maker: Maker, lab: Topology) -> None:
    with maker.socket() as sock:
        sock.settimeout(PATIENCE)
        assert refused_with(sock.connect, (GATEWAY4, PORT)) == errno.ECONNREFUSED
        with lab.gateway.listen(GATEWAY4, PORT, protocol=IPPROTO_MPTCP) as listener:
            if refused_with(sock.connect, (GATEWAY4, PORT)) == errno.ECONNABORTED:
                sock.connect((GATEWAY4, PORT))  # Linux's MPTCP says that once
            accepted(listener).close()
            assert sock.recv(1) == b""


def test_connecting_ends_at_the_timeout(maker: Maker, lab: Topology) -> None:
    with dropped(lab.gateway, PORT), maker.socket() as sock:
        sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            sock.connect((GATEWAY4, PORT))


def test_a_descriptor_is_writable_once_it_is_connected(
    maker: Maker, lab: Topology, server: socket.socket
) -> None:
    target = server.getsockname()
    with maker.socket() as sock:
        sock.setblocking(False)
        with dropped(lab.gateway, PORT):
            assert sock.connect_ex(target) == errno.EINPROGRESS
            assert select.select((), (sock,), (), 0.0)[1] == []
            assert sock.connect_ex(target) == errno.EALREADY
        assert select.select((), (sock,), (), PATIENCE)[1] == [sock]
        assert code_of(sock) == 0
        assert sock.connect_ex(target) == 0
        assert sock.connect_ex(target) == errno.EISCONN
        assert refused_with(sock.listen) == errno.EINVAL
        with pytest.raises(BlockingIOError):
            sock.recv(1)
        peer = accepted(server)
        peer.sendall(b"x")
        assert select.select((sock,), (), (), PATIENCE)[0] == [sock]
        assert sock.recv(10) == b"x"
        peer.close()


def test_a_refusal_wakes_who_polls(maker: Maker) -> None:
    with maker.socket() as sock:
        sock.setblocking(False)
        assert sock.connect_ex((GATEWAY4, PORT)) == errno.EINPROGRESS
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        assert poll.poll(PATIENCE * 1000)
        assert code_of(sock) == errno.ECONNREFUSED
        assert code_of(sock) == 0


# -- bytes -------------------------------------------------------------------------------------


def test_large_transfers_in_both_directions_at_once(maker: Maker, server: socket.socket) -> None:
    data = pattern(20_000_000)
    sock, peer = connected(maker, server)

    def send(end: Any) -> None:
        end.sendall(data)
        end.shutdown(socket.SHUT_WR)

    work = [Peer(send, sock), Peer(send, peer), Peer(read_all, peer)]
    assert sha256(read_all(sock)).digest() == sha256(data).digest()
    assert sha256(work[2].result()).digest() == sha256(data).digest()
    work[0].result()
    work[1].result()
    sock.close()
    peer.close()


@pytest.mark.parametrize("slow", ["peer", "program"])
def test_a_slow_reader_stops_its_sender(maker: Maker, server: socket.socket, slow: str) -> None:
    sock, peer = connected(maker, server)
    sender, reader = (sock, peer) if slow == "peer" else (peer, sock)
    sent = until_blocked(sender, 2.0, 200_000_000)
    assert 0 < sent < 100_000_000
    sender.settimeout(PATIENCE)
    sender.shutdown(socket.SHUT_WR)
    assert len(read_all(reader)) == sent
    sock.close()
    peer.close()


def test_the_ways_to_read(maker: Maker, server: socket.socket) -> None:
    sock, peer = connected(maker, server)
    peer.sendall(b"line one\nline two\nthe rest")
    buffer = bytearray(4)
    assert sock.recv(4, socket.MSG_PEEK | socket.MSG_WAITALL) == b"line"
    assert sock.recv_into(buffer) == 4
    assert bytes(buffer) == b"line"
    with sock.makefile("rwb") as file:
        assert file.readline() == b" one\n"
        assert file.readline() == b"line two\n"
        assert file.read(8) == b"the rest"
        file.write(b"written")
        file.flush()
    assert peer.recv(100) == b"written"
    sock.sendmsg([b"two ", b"parts"])
    assert peer.recv(100) == b"two parts"
    with sock.dup() as other:
        peer.sendall(b"twice")
        assert other.recvfrom(2, socket.MSG_WAITALL)[0] == b"tw"
        assert other.recvmsg(3, 0, socket.MSG_WAITALL)[:2] == (b"ice", [])
    sock.settimeout(0.05)
    with pytest.raises(TimeoutError):
        sock.recv(1)
    sock.settimeout(PATIENCE)
    with sock:
        peer.close()
        assert sock.recv(1) == b""
    assert sock.fileno() == -1


def test_shutting_the_read_side_ends_reading_alone(maker: Maker, server: socket.socket) -> None:
    sock, peer = connected(maker, server)
    sock.shutdown(socket.SHUT_RD)
    assert sock.recv(1) == b""
    sock.sendall(b"still")
    assert peer.recv(5, socket.MSG_WAITALL) == b"still"
    sock.close()
    peer.close()


# -- resets ------------------------------------------------------------------------------------


def test_a_reset_is_told_once(maker: Maker, server: socket.socket) -> None:
    sock, peer = connected(maker, server)
    sock.sendall(b"x")
    assert peer.recv(1) == b"x"
    reset(peer)
    assert refused_with(sock.recv, 1) == errno.ECONNRESET
    assert sock.recv(1) == b""
    assert refused_with(sock.send, b"x") == errno.EPIPE
    sock.close()


def test_closing_without_linger_resets(maker: Maker, server: socket.socket) -> None:
    sock, peer = connected(maker, server)
    reset(sock)
    assert refused_with(peer.recv, 1) == errno.ECONNRESET
    peer.close()


def test_closing_with_unread_data_resets(maker: Maker, server: socket.socket) -> None:
    sock, peer = connected(maker, server)
    peer.sendall(b"unread")
    assert select.select((sock,), (), (), PATIENCE)[0]
    sock.close()
    assert refused_with(peer.recv, 1) == errno.ECONNRESET
    peer.close()


def test_what_was_sent_before_the_close_arrives(maker: Maker, server: socket.socket) -> None:
    data = pattern(2_000_000)
    sock, peer = connected(maker, server)
    reading = Peer(read_all, peer)
    sock.sendall(data)
    sock.close()
    assert reading.result() == data
    peer.close()


# -- listening ---------------------------------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("proto", [IPPROTO_MPTCP, 0], ids=["mptcp", "plain"])
def test_a_listener_takes_mptcp_and_plain_tcp(
    maker: Maker, lab: Topology, six: bool, proto: int
) -> None:
    with listening(maker, six=six) as listener:
        address, port = listener.getsockname()[:2]
        with lab.gateway.connect(address, port, protocol=proto) as peer:
            sock, name = listener.accept()
            sock.settimeout(PATIENCE)
            assert name == peer.getsockname() == sock.getpeername()
            assert sock.getsockname() == peer.getpeername()
            assert sock.getsockopt(TCP, TCP_IS_MPTCP) == bool(proto)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == (proto or TCP)
            peer.sendall(b"hello")
            assert sock.recv(10) == b"hello"
            sock.sendall(b"you")
            sock.close()
            assert read_all(peer) == b"you"


def test_a_listener_of_tcp_takes_no_mptcp(maker: Maker, lab: Topology) -> None:
    with listening(maker, proto=0) as listener:
        address, port = listener.getsockname()
        with lab.gateway.connect(address, port, protocol=IPPROTO_MPTCP) as peer:
            accepted(listener).close()
            assert peer.recv(1) == b""
            assert peer.getsockopt(TCP, TCP_IS_MPTCP) == 0


def test_accepting_waits_as_it_is_told(maker: Maker, lab: Topology) -> None:
    with listening(maker) as listener:
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        assert listener.getsockopt(TCP, socket.TCP_INFO, 104)[0] == 10  # LISTEN
        listener.settimeout(0.05)
        with pytest.raises(TimeoutError):
            listener.accept()
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
        assert select.select((listener,), (), (), 0.0)[0] == []
        with lab.gateway.connect(*listener.getsockname(), protocol=IPPROTO_MPTCP):
            assert select.select((listener,), (), (), PATIENCE)[0] == [listener]
            sock, _ = listener.accept()
            assert sock.gettimeout() is None
            sock.close()


def test_a_full_queue_takes_no_more(maker: Maker, lab: Topology) -> None:
    with listening(maker, backlog=1) as listener:
        target = listener.getsockname()
        waiting: list[socket.socket] = []

        def connect_more() -> None:
            # One or the other more: the last one's ACK may still be under way.
            while len(waiting) < 10:
                waiting.append(lab.gateway.connect(*target, protocol=IPPROTO_MPTCP, timeout=3.0))

        with pytest.raises(TimeoutError):
            connect_more()
        assert len(waiting) >= 2
        for peer in waiting:
            accepted(listener).close()
            peer.close()
        with lab.gateway.connect(*target, protocol=IPPROTO_MPTCP, timeout=PATIENCE):
            accepted(listener).close()


def test_a_closed_listener_refuses_and_resets_what_waited(maker: Maker, lab: Topology) -> None:
    with listening(maker) as listener:
        target = listener.getsockname()
        waiting = lab.gateway.connect(*target, protocol=IPPROTO_MPTCP)
        waiting.settimeout(PATIENCE)
        assert select.select((listener,), (), (), PATIENCE)[0]
    assert refused_with(waiting.recv, 1) == errno.ECONNRESET
    waiting.close()
    assert refused_with(lab.gateway.connect, *target) == errno.ECONNREFUSED


def test_a_port_is_bound_once(maker: Maker) -> None:
    with listening(maker) as listener, maker.socket() as other:
        assert refused_with(other.bind, listener.getsockname()) == errno.EADDRINUSE
        assert refused_with(other.bind, ("192.0.2.1", 0)) == errno.EADDRNOTAVAIL
        other.bind((uplink_address(1), 0))
        assert refused_with(other.bind, (uplink_address(1), 0)) == errno.EINVAL


def test_a_bound_socket_connects_from_its_port(maker: Maker, server: socket.socket) -> None:
    with maker.socket() as sock:
        sock.settimeout(PATIENCE)
        sock.bind((uplink_address(1), 0))
        bound = sock.getsockname()
        sock.connect(server.getsockname())
        peer, name = server.accept()
        assert name == sock.getsockname() == bound
        peer.close()


# -- options -----------------------------------------------------------------------------------

INTEGERS = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (TCP, socket.TCP_NODELAY, 1),
    (TCP, socket.TCP_KEEPIDLE, 30),
    (TCP, socket.TCP_KEEPINTVL, 5),
    (TCP, socket.TCP_KEEPCNT, 3),
]


def test_options_are_kept_before_and_after_the_connect(maker: Maker, server: socket.socket) -> None:
    sock = maker.socket()
    sock.settimeout(PATIENCE)
    for level, option, value in INTEGERS[:3]:
        sock.setsockopt(level, option, value)
    sock.connect(server.getsockname())
    for level, option, value in INTEGERS[3:]:
        sock.setsockopt(level, option, struct.pack("i", value))
    for level, option, value in INTEGERS:
        assert sock.getsockopt(level, option) == value
    linger = struct.pack("ii", 1, 7)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == linger
    sock.close()
    accepted(server).close()


def test_congestion_control_can_be_chosen(maker: Maker, server: socket.socket) -> None:
    sock = maker.socket()
    sock.settimeout(PATIENCE)
    sock.setsockopt(TCP, socket.TCP_CONGESTION, b"reno")
    sock.connect(server.getsockname())
    assert sock.getsockopt(TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"reno"
    sock.setsockopt(TCP, socket.TCP_CONGESTION, b"cubic")
    assert sock.getsockopt(TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"cubic"
    assert refused_with(sock.setsockopt, TCP, socket.TCP_CONGESTION, b"none") == errno.ENOENT
    for option, value in ((socket.TCP_KEEPIDLE, 0), (socket.TCP_KEEPCNT, 128)):
        assert refused_with(sock.setsockopt, TCP, option, value) == errno.EINVAL
    sock.close()
    accepted(server).close()


def test_an_accepted_socket_has_the_options_of_its_listener(maker: Maker, lab: Topology) -> None:
    with listening(maker) as listener:
        listener.setsockopt(TCP, socket.TCP_KEEPIDLE, 77)
        listener.setsockopt(TCP, socket.TCP_CONGESTION, b"reno")
        with lab.gateway.connect(*listener.getsockname(), protocol=IPPROTO_MPTCP):
            sock = accepted(listener)
            assert sock.getsockopt(TCP, socket.TCP_KEEPIDLE) == 77
            assert sock.getsockopt(TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"reno"
            sock.close()


@pytest.mark.parametrize(
    ("level", "option", "value", "code"),
    [
        (TCP, 14, 1, errno.ENOPROTOOPT),  # TCP_MD5SIG
        (socket.IPPROTO_IP, socket.IP_OPTIONS, 1, errno.ENOPROTOOPT),
        (socket.SOL_SOCKET, socket.SO_OOBINLINE, 1, errno.EOPNOTSUPP),
        (socket.SOL_SOCKET, socket.SO_LINGER, 1, errno.EINVAL),
        (SOL_MPTCP, MPTCP_INFO, 1, errno.ENOPROTOOPT),
    ],
)
def test_what_cannot_be_set(maker: Maker, level: int, option: int, value: int, code: int) -> None:
    with maker.socket() as sock:
        assert refused_with(sock.setsockopt, level, option, value) == code


# -- what getsockopt tells -------------------------------------------------------------------------


@pytest.fixture
def talked(maker: Maker, server: socket.socket) -> Iterator[tuple[Any, socket.socket]]:
    """A connection on which 5 bytes went there and 7 came back."""
    sock, peer = connected(maker, server)
    sock.sendall(b"12345")
    assert peer.recv(5, socket.MSG_WAITALL) == b"12345"
    peer.sendall(b"1234567")
    assert sock.recv(7, socket.MSG_WAITALL) == b"1234567"
    yield sock, peer
    sock.close()
    peer.close()


def info_of(sock: Any) -> MptcpInfo:
    answer = sock.getsockopt(SOL_MPTCP, MPTCP_INFO, ctypes.sizeof(MptcpInfo))
    return MptcpInfo.from_buffer_copy(answer.ljust(ctypes.sizeof(MptcpInfo), b"\0"))


def test_mptcp_info_counts_bytes(talked: tuple[Any, socket.socket]) -> None:
    sock, peer = talked
    wait_for(lambda: info_of(sock).mptcpi_bytes_acked == 5, "the acknowledgement")
    info = info_of(sock)
    assert (info.mptcpi_bytes_sent, info.mptcpi_bytes_received) == (5, 7)
    assert info.mptcpi_subflows_total == 1 + info.mptcpi_subflows
    assert info.mptcpi_flags == 2  # the peer's key is known, and no fall-back
    theirs = info_of(peer)
    assert info.mptcpi_snd_una == info.mptcpi_write_seq == theirs.mptcpi_rcv_nxt
    assert len(sock.getsockopt(SOL_MPTCP, MPTCP_INFO, 12)) == 12


def test_tcp_info_of_the_first_subflow(talked: tuple[Any, socket.socket]) -> None:
    answer = talked[0].getsockopt(TCP, socket.TCP_INFO, ctypes.sizeof(TcpInfo))
    info = TcpInfo.from_buffer_copy(answer.ljust(ctypes.sizeof(TcpInfo), b"\0"))
    assert info.tcpi_state == 1
    assert info.tcpi_snd_mss > 500
    assert info.tcpi_rtt > 0


def elements(maker: Maker, sock: Any, option: int, kind: type[Any]) -> list[Any]:
    """What follows the header of an answer."""
    size, head = ctypes.sizeof(kind), ctypes.sizeof(SubflowData)
    buffer = bytearray(head + 4 * size)
    buffer[:head] = bytes(SubflowData(size_subflow_data=head, size_user=size))
    length = maker.option_into(sock, SOL_MPTCP, option, buffer)
    header = SubflowData.from_buffer_copy(buffer)
    step = header.size_user
    assert length == head + header.num_subflows * step
    assert header.size_kernel >= step > 0
    return [
        kind.from_buffer_copy(bytes(buffer[at : at + step]).ljust(size, b"\0"))
        for at in range(head, length, step)
    ]


def test_what_is_told_of_each_subflow(maker: Maker, talked: tuple[Any, socket.socket]) -> None:
    sock, peer = talked
    infos = elements(maker, sock, MPTCP_TCPINFO, TcpInfo)
    addresses = elements(maker, sock, MPTCP_SUBFLOW_ADDRS, SubflowAddrs)
    assert len(infos) == len(addresses) >= 1
    assert infos[0].tcpi_state == 1
    seen = [sockaddr(bytes(end)) for end in (addresses[0].local, addresses[0].remote)]
    names = [(socket.inet_ntop(socket.AF_INET, ip), port) for ip, port in seen]
    assert names == [sock.getsockname(), peer.getsockname()]


def test_full_info_writes_to_its_pointers(maker: Maker, talked: tuple[Any, socket.socket]) -> None:
    sock, _ = talked
    infos, flows = (TcpInfo * 4)(), (SubflowInfo * 4)()
    full = FullInfo(
        size_tcpinfo_user=ctypes.sizeof(TcpInfo),
        size_sfinfo_user=ctypes.sizeof(SubflowInfo),
        size_arrays_user=4,
        subflow_info=ctypes.addressof(flows),
        tcp_info=ctypes.addressof(infos),
    )
    buffer = bytearray(bytes(full))
    maker.option_into(sock, SOL_MPTCP, MPTCP_FULL_INFO, buffer)
    answer = FullInfo.from_buffer_copy(buffer)
    assert answer.num_subflows >= 1
    assert answer.mptcp_info.mptcpi_bytes_received == 7
    assert infos[0].tcpi_state == 1
    assert flows[0].id >= 1
    ip, port = sockaddr(bytes(flows[0].addrs.local))
    assert (socket.inet_ntop(socket.AF_INET, ip), port) == sock.getsockname()


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"size_subflow_data": 8},
        {"size_subflow_data": 16, "num_subflows": 1},
        {"size_subflow_data": 4096},
    ],
)
def test_a_wrong_header_is_refused(
    maker: Maker, talked: tuple[Any, socket.socket], header: dict[str, int]
) -> None:
    buffer = bytearray(bytes(SubflowData(**header)))
    for option in (MPTCP_TCPINFO, MPTCP_SUBFLOW_ADDRS):
        code = refused_with(maker.option_into, talked[0], SOL_MPTCP, option, buffer)
        assert code == errno.EINVAL
    assert refused_with(maker.option_into, talked[0], SOL_MPTCP, 9, buffer) == errno.EOPNOTSUPP
