"""ICMP errors about TCP segments, read and made."""

from __future__ import annotations

import contextlib
import errno
import struct

import dpkt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import seg
from proxy.errors import CodecError
from proxy.wire.address import Address
from proxy.wire.icmp import (
    IcmpError,
    Unreachable,
    build_too_big,
    build_unreachable,
    parse_icmp,
)
from tests.unit.seg_packets import A4, A6, B4, B6, DATA_VALID, NO_VIRTIO, ones_sum, tcp_packet, u8

ROUTER4, ROUTER6 = bytes((203, 0, 113, 1)), bytes.fromhex("20010db8ffff") + bytes(10)


def icmp4(kind: int, code: int, mtu: int = 0, quote: bytes | None = None) -> bytes:
    if quote is None:
        quote = tcp_packet(b"x" * 99, seq=77)[10:38]  # IP header and 8 bytes
    body = struct.pack(">BBHHH", kind, code, 0, 0, mtu) + quote
    body = body[:2] + (ones_sum(body) ^ 0xFFFF).to_bytes(2, "big") + body[4:]
    ip = dpkt.ip.IP(src=ROUTER4, dst=A4, p=1, data=body)
    ip.len = len(ip)
    return NO_VIRTIO + bytes(ip)


def icmp6(kind: int, code: int, mtu: int = 0, quote: bytes | None = None) -> bytes:
    if quote is None:
        quote = tcp_packet(b"x" * 99, src=A6, dst=B6, seq=77)[10:]
    body = struct.pack(">BBHI", kind, code, 0, mtu) + quote
    pseudo = ROUTER6 + A6 + struct.pack(">II", len(body), 58)
    body = body[:2] + (ones_sum(pseudo + body) ^ 0xFFFF).to_bytes(2, "big") + body[4:]
    return NO_VIRTIO + struct.pack(">IHBB", 6 << 28, len(body), 58, 64) + ROUTER6 + A6 + body


def test_port_unreachable() -> None:
    error = parse_icmp(icmp4(3, 3))
    assert error == IcmpError(
        sender=ROUTER4,
        type=3,
        code=3,
        mtu=0,
        local=Address(A4, 1234),
        remote=Address(B4, 80),
        seq=77,
        key=seg.parse(tcp_packet(src=B4, dst=A4, sport=80, dport=1234)).key,
        errno=errno.ECONNREFUSED,
        hard=True,
    )


def test_port_unreachable_of_ipv6() -> None:
    error = parse_icmp(icmp6(1, 4))
    assert (error.sender, error.local, error.remote) == (
        ROUTER6,
        Address(A6, 1234),
        Address(B6, 80),
    )
    assert (error.seq, error.errno, error.hard) == (77, errno.ECONNREFUSED, True)
    assert error.key == seg.parse(tcp_packet(src=B6, dst=A6, sport=80, dport=1234)).key


@pytest.mark.parametrize("packet", [icmp4(3, 4, 1280), icmp6(2, 0, 1280)])
def test_packet_too_big_tells_the_mtu(packet: bytes) -> None:
    error = parse_icmp(packet)
    assert (error.too_big, error.mtu, error.hard) == (True, 1280, False)


@pytest.mark.parametrize(
    ("packet", "number", "hard"),
    [
        (icmp4(3, 0), errno.ENETUNREACH, False),
        (icmp4(3, 1, 99), errno.EHOSTUNREACH, False),
        (icmp4(3, 13), errno.EHOSTUNREACH, True),
        (icmp4(11, 0), errno.EHOSTUNREACH, False),
        (icmp4(12, 0), errno.EPROTO, False),
        (icmp6(1, 0), errno.ENETUNREACH, False),
        (icmp6(1, 1), errno.EACCES, True),
        (icmp6(1, 3, 99), errno.EHOSTUNREACH, False),
        (icmp6(3, 0), errno.EHOSTUNREACH, False),
        (icmp6(4, 0), errno.EPROTO, True),
    ],
)
def test_errors_mean_what_they_mean_to_linux(packet: bytes, number: int, hard: bool) -> None:
    error = parse_icmp(packet)
    assert (error.errno, error.hard, error.mtu, error.too_big) == (number, hard, 0, False)


QUOTED4, QUOTED6 = tcp_packet()[10:], tcp_packet(src=A6, dst=B6)[10:]
UDP4 = QUOTED4[:9] + b"\x11" + QUOTED4[10:]


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        icmp4(8, 0),
        icmp4(0, 0),
        icmp4(4, 0),  # source quench (RFC 6633)
        icmp4(5, 0),
        icmp4(3, 16),
        icmp6(128, 0),
        icmp6(1, 7),
        icmp6(135, 0),
        icmp4(3, 3, quote=QUOTED4[:27]),
        icmp4(3, 3, quote=QUOTED4[:19]),
        icmp4(3, 3, quote=b""),
        icmp4(3, 3, quote=UDP4),
        icmp4(3, 3, quote=QUOTED6),
        icmp4(3, 3, quote=QUOTED4[:6] + b"\x00\x01" + QUOTED4[8:]),
        icmp6(1, 4, quote=QUOTED6[:47]),
        icmp6(1, 4, quote=QUOTED4),
        icmp6(1, 4, quote=QUOTED6[:6] + b"\x11" + QUOTED6[7:]),
        icmp4(3, 3)[:-1],
        icmp6(1, 4)[:-1],
        icmp4(3, 3)[:-1] + b"\xaa",  # checksum
        icmp6(1, 4)[:-1] + b"\xaa",
        tcp_packet(),
        tcp_packet(src=A6, dst=B6),
    ],
)
def test_what_is_no_error_about_tcp_is_refused(packet: bytes) -> None:
    with pytest.raises(CodecError):
        parse_icmp(packet)


def test_quote_with_options_and_extension_headers_is_found() -> None:
    quote4 = tcp_packet(ip_options=b"\x01" * 8, seq=5)[10:]
    assert parse_icmp(icmp4(3, 3, quote=quote4)).seq == 5
    extension = bytes((6,)) + bytes(7)
    quote6 = tcp_packet(src=A6, dst=B6, seq=5, first_extension=60, extensions=extension)[10:]
    assert parse_icmp(icmp6(1, 4, quote=quote6)).seq == 5


@given(
    st.sampled_from((icmp4(3, 4, 1300), icmp6(2, 0, 1300))),
    st.lists(st.tuples(st.integers(0, 110), u8), max_size=4),
    st.integers(0, 200),
)
@settings(deadline=None)
def test_mutated_errors_raise_codec_errors_alone(
    packet: bytes, changes: list[tuple[int, int]], size: int
) -> None:
    mutated = bytearray(packet)
    for at, value in changes:
        if at < len(mutated):
            mutated[at] = value
    mutated[0] |= DATA_VALID
    with contextlib.suppress(CodecError):
        parse_icmp(bytes(mutated[:size]))


@pytest.mark.parametrize(("src", "dst", "source"), [(A4, B4, ROUTER4), (A6, B6, ROUTER6)])
@pytest.mark.parametrize(
    ("why", "number4", "number6"),
    [
        (Unreachable.NETWORK, errno.ENETUNREACH, errno.ENETUNREACH),
        (Unreachable.HOST, errno.EHOSTUNREACH, errno.EHOSTUNREACH),
        (Unreachable.PORT, errno.ECONNREFUSED, errno.ECONNREFUSED),
        (Unreachable.PROHIBITED, errno.EHOSTUNREACH, errno.EACCES),
    ],
)
def test_unreachable_that_we_send_is_understood(
    src: bytes, dst: bytes, source: bytes, why: Unreachable, number4: int, number6: int
) -> None:
    segment = seg.parse(tcp_packet(b"x" * 50, src=src, dst=dst, seq=42, flags=2))
    for given_source in (source, None):
        error = parse_icmp(build_unreachable(segment, why, given_source))
        assert error.sender == (given_source or dst)
        assert (error.local, error.remote) == (Address(src, 1234), Address(dst, 80))
        assert (error.seq, error.errno) == (42, number4 if len(src) == 4 else number6)


@pytest.mark.parametrize(("src", "dst"), [(A4, B4), (A6, B6)])
def test_too_big_that_we_send_is_understood(src: bytes, dst: bytes) -> None:
    segment = seg.parse(tcp_packet(b"x" * 65000, src=src, dst=dst))
    packet = build_too_big(segment, 1400)
    error = parse_icmp(packet)
    assert (error.too_big, error.mtu) == (True, 1400)
    assert len(packet) < 576


def test_dpkt_reads_what_we_send() -> None:
    segment = seg.parse(tcp_packet(seq=42, flags=2))
    ip = dpkt.ip.IP(build_unreachable(segment, Unreachable.HOST, ROUTER4)[10:])
    assert (ip.src, ip.dst, ip.p, ip.len) == (ROUTER4, A4, 1, 20 + 8 + 40)
    assert (ip.data.type, ip.data.code) == (3, 1)
    quoted = ip.data.data.data
    assert (quoted.dst, quoted.data.seq, quoted.data.flags) == (B4, 42, 2)
    assert ones_sum(bytes(ip)[:20]) == 0xFFFF
