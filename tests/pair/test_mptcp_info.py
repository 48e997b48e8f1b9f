"""What ``getsockopt`` tells: one set of checks for the kernel's MPTCP and for ours."""

from __future__ import annotations

import ctypes
import errno
import random
import socket
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest

from proxy.mptcp import sockopt
from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.info import (
    FLAG_FALLBACK,
    FLAG_REMOTE_KEY_RECEIVED,
    FullInfo,
    MptcpInfo,
    SubflowAddrs,
    SubflowData,
    SubflowInfo,
    TcpInfo,
    sockaddr,
)
from proxy.wire.address import Address
from tests.pair.mptcp_harness import SERVER, App, MptcpPair, Path, path, payload
from tests.pair.mptcp_middlebox import strip_mptcp

SENT, GOT = 30_000, 20_000
ESTABLISHED = 1

GetSockOpt = Callable[[int, bytearray], int]
"""``(option, buffer)``: the length that comes back; ``OSError``."""


class Side:
    """A connection that sent ``SENT`` bytes and received ``GOT``, all acknowledged."""

    def __init__(
        self, get: GetSockOpt, remote: Address, subflows: int, kernel: bool = False
    ) -> None:
        self.get = get
        self.remote = remote
        self.subflows = subflows
        self.kernel = kernel


def paths(rng: random.Random) -> list[Path]:
    return [path(rng, 50, 20), path(rng, 20, 60)]


def ours() -> Side:
    pair = MptcpPair(paths, App(payload(SENT, 1), close=False), App(payload(GOT, 2), close=False))
    pair.run_for(2.0)
    view = sockopt.view(pair.client, pair.now, lambda address: address)

    def get(option: int, buffer: bytearray) -> int:
        return sockopt.fill(view, option, memoryview(buffer), write_memory)

    return Side(get, SERVER, 2)


def write_memory(address: int, data: bytes) -> None:
    ctypes.memmove(address, data, len(data))


def kernel_get(sock: socket.socket) -> GetSockOpt:
    libc = ctypes.CDLL(None, use_errno=True)

    def get(option: int, buffer: bytearray) -> int:
        length = ctypes.c_uint32(len(buffer))
        memory = (ctypes.c_char * len(buffer)).from_buffer(buffer)
        descriptor = sock.fileno()
        if libc.getsockopt(descriptor, sockopt.SOL_MPTCP, option, memory, ctypes.byref(length)):
            raise OSError(ctypes.get_errno(), "getsockopt")
        return length.value

    return get


def receive_all(sock: socket.socket, size: int) -> None:
    while size:
        size -= len(sock.recv(size))


@pytest.fixture(params=["kernel", "ours"])
def side(request: pytest.FixtureRequest) -> Iterator[Side]:
    if request.param == "ours":
        yield ours()
        return
    try:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
    except OSError as error:
        pytest.skip(f"this kernel has no MPTCP: {error.strerror}")
    with listener, socket.socket(listener.family, listener.type, listener.proto) as client:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        with server:
            client.sendall(bytes(SENT))
            receive_all(server, SENT)
            server.sendall(bytes(GOT))
            receive_all(client, GOT)
            remote = Address(b"\x7f\0\0\1", listener.getsockname()[1])
            yield Side(kernel_get(client), remote, 1, kernel=True)


def request(size_user: int, room: int, header: int = 16) -> bytearray:
    """A buffer with ``struct mptcp_subflow_data`` at its beginning."""
    return bytearray(bytes(SubflowData(header, 0, 0, size_user)).ljust(header + room, b"\0"))


def test_mptcp_info_says_what_was_sent_and_received(side: Side) -> None:
    buffer = bytearray(4096)
    length = side.get(sockopt.MPTCP_INFO, buffer)
    assert length == ctypes.sizeof(MptcpInfo)
    info = MptcpInfo.from_buffer_copy(buffer)
    assert info.mptcpi_flags == FLAG_REMOTE_KEY_RECEIVED
    assert info.mptcpi_token
    assert (info.mptcpi_bytes_sent, info.mptcpi_bytes_received) == (SENT, GOT)
    assert info.mptcpi_bytes_acked == SENT
    assert info.mptcpi_write_seq - info.mptcpi_snd_una == 0
    assert info.mptcpi_rcv_nxt
    assert info.mptcpi_subflows_total == side.subflows
    assert info.mptcpi_subflows == side.subflows - 1
    assert info.mptcpi_csum_enabled == 0


def test_mptcp_info_is_cut_to_the_buffer(side: Side) -> None:
    whole, part = bytearray(96), bytearray(b"\xff" * 20)
    side.get(sockopt.MPTCP_INFO, whole)
    assert side.get(sockopt.MPTCP_INFO, memoryview_of(part, 16)) == 16
    assert part[:16] == whole[:16]


def memoryview_of(buffer: bytearray, size: int) -> bytearray:
    """``buffer`` cut to ``size``: what lies behind must not be written."""
    del buffer[size:]
    return buffer


def test_tcp_info_of_each_subflow(side: Side) -> None:
    size = ctypes.sizeof(TcpInfo)
    buffer = request(size_user=1000, room=5 * size)
    length = side.get(sockopt.MPTCP_TCPINFO, buffer)
    header = SubflowData.from_buffer_copy(buffer)
    assert (header.num_subflows, header.size_kernel) == (side.subflows, size)
    assert header.size_user == size
    assert length == 16 + size * side.subflows
    infos = [TcpInfo.from_buffer_copy(buffer, 16 + n * size) for n in range(side.subflows)]
    for info in infos:
        assert info.tcpi_state == ESTABLISHED
        assert info.tcpi_rtt > 0
        assert info.tcpi_snd_cwnd >= 10
        assert info.tcpi_snd_mss >= 500
        assert info.tcpi_options & 7 == 7  # timestamps, SACK, window scale
        assert info.tcpi_unacked == 0
    assert sum(info.tcpi_bytes_received for info in infos) == GOT
    # The kernel counts the SYN as a byte that was acknowledged.
    assert sum(info.tcpi_bytes_acked for info in infos) in (SENT, SENT + 1)


def test_an_element_is_cut_to_what_the_program_knows(side: Side) -> None:
    buffer = request(size_user=8, room=8 * side.subflows)
    assert side.get(sockopt.MPTCP_TCPINFO, buffer) == 16 + 8 * side.subflows
    header = SubflowData.from_buffer_copy(buffer)
    assert (header.size_user, header.size_kernel) == (8, ctypes.sizeof(TcpInfo))
    assert buffer[16] == ESTABLISHED


def test_elements_that_do_not_fit_are_counted_only(side: Side) -> None:
    buffer = request(size_user=ctypes.sizeof(TcpInfo), room=100)
    assert side.get(sockopt.MPTCP_TCPINFO, buffer) == 16
    assert SubflowData.from_buffer_copy(buffer).num_subflows == side.subflows
    assert not any(buffer[16:])


def test_addresses_of_each_subflow(side: Side) -> None:
    size = ctypes.sizeof(SubflowAddrs)
    buffer = request(size_user=size, room=5 * size)
    assert side.get(sockopt.MPTCP_SUBFLOW_ADDRS, buffer) == 16 + size * side.subflows
    found = [SubflowAddrs.from_buffer_copy(buffer, 16 + n * size) for n in range(side.subflows)]
    for addrs in found:
        ip, port = sockaddr(bytes(addrs.local))
        assert ip_address(ip).is_private
        assert port
        assert sockaddr(bytes(addrs.remote)) == side.remote


def test_full_info_fills_the_arrays_of_the_program(side: Side) -> None:
    infos, subflows = (TcpInfo * 4)(), (SubflowInfo * 4)()
    full = FullInfo(
        size_tcpinfo_user=ctypes.sizeof(TcpInfo),
        size_sfinfo_user=ctypes.sizeof(SubflowInfo),
        size_arrays_user=4,
        tcp_info=ctypes.addressof(infos),
        subflow_info=ctypes.addressof(subflows),
    )
    buffer = bytearray(bytes(full))
    assert side.get(sockopt.MPTCP_FULL_INFO, buffer) == ctypes.sizeof(FullInfo)
    full = FullInfo.from_buffer_copy(buffer)
    assert full.num_subflows == side.subflows
    assert full.size_tcpinfo_kernel == ctypes.sizeof(TcpInfo)
    assert full.size_sfinfo_kernel == ctypes.sizeof(SubflowInfo)
    assert full.mptcp_info.mptcpi_bytes_sent == SENT
    assert [flow.id for flow in subflows] == [*range(1, side.subflows + 1), *[0] * 4][:4]
    assert sockaddr(bytes(subflows[0].addrs.remote)) == side.remote
    assert [info.tcpi_state for info in infos][: side.subflows] == [1] * side.subflows


def test_full_info_without_arrays_counts_only(side: Side) -> None:
    buffer = bytearray(40)
    assert side.get(sockopt.MPTCP_FULL_INFO, buffer) == 40
    buffer = bytearray(bytes(buffer).ljust(ctypes.sizeof(FullInfo), b"\0"))
    assert FullInfo.from_buffer_copy(buffer).num_subflows == side.subflows


@pytest.mark.parametrize(
    ("option", "buffer", "code"),
    [
        (2, bytearray(15), errno.EINVAL),
        (3, bytearray(16), errno.EINVAL),  # size_subflow_data 0
        (2, bytearray(bytes(SubflowData(17, 0, 0, 1))), errno.EINVAL),
        (2, bytearray(bytes(SubflowData(16, 1, 0, 1))), errno.EINVAL),
        (2, bytearray(bytes(SubflowData(16, 0, 1, 1))), errno.EINVAL),
        (3, bytearray(bytes(SubflowData(16, 0, 0, 1 << 31))), errno.EINVAL),
        (4, bytearray(39), errno.EINVAL),
        (4, bytearray(bytes(FullInfo(num_subflows=1))), errno.EINVAL),
        (4, bytearray(bytes(FullInfo(size_sfinfo_kernel=1))), errno.EINVAL),
        (4, bytearray(bytes(FullInfo(size_tcpinfo_user=1 << 31))), errno.EINVAL),
        (5, bytearray(100), errno.EOPNOTSUPP),
    ],
)
def test_a_wrong_request_is_refused_alike(
    side: Side, option: int, buffer: bytearray, code: int
) -> None:
    with pytest.raises(OSError, match=r".") as caught:
        side.get(option, bytearray(buffer))
    assert caught.value.errno == code


def test_mptcp_info_tells_of_a_fallback() -> None:
    pair = MptcpPair(
        paths,
        App(b"x", close=False),
        App(close=False),
        filter=lambda _path, _up, packet: [strip_mptcp(packet)],
    )
    pair.run_for(1.0)
    assert isinstance(pair.client, MptcpConnection)
    info = sockopt.view(pair.client, pair.now, lambda address: address).info
    assert info.mptcpi_flags == FLAG_FALLBACK
    assert info.mptcpi_rcv_nxt == 0
